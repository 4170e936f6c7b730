//! What a peer or an operator may send as a message, an address or a certificate is refused
//! or understood; what was understood is written as it was read.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use lifeboat_peer::pki::{CertificateInfo, HostNames};
use lifeboat_peer::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Introduction, NewReplica, PeerAddress, PlannedFailover, Refusal,
    Removal, ReplicaReport, SessionRequest, TakeOver,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn message<M: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) -> Option<M> {
    let message: M = serde_json::from_slice(data).ok()?;
    let text = serde_json::to_vec(&message).expect("a message is written");
    let again: M = serde_json::from_slice(&text).expect("a message is read as it was written");
    assert_eq!(message, again);
    Some(message)
}

fuzz_target!(|data: &[u8]| {
    message::<Introduction>(data);
    message::<NewReplica>(data);
    message::<SessionRequest>(data);
    message::<ReplicaReport>(data);
    message::<BeginCopy>(data);
    message::<CopyProgress>(data);
    message::<ChunkPlace>(data);
    message::<DeltaPlace>(data);
    message::<PlannedFailover>(data);
    message::<GuestStatus>(data);
    message::<TakeOver>(data);
    message::<Adoption>(data);
    message::<Adopted>(data);
    message::<ChangeSettings>(data);
    message::<Removal>(data);
    message::<Refusal>(data);
    if let Some(query) = message::<DigestQuery>(data)
        && let Ok(length) = query.answer_length()
    {
        assert!(length <= (4 << 20) + 16 && length.is_multiple_of(16));
    }
    let _ = CertificateInfo::read(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = HostNames::new(text);
        if let Ok(address) = text.parse::<PeerAddress>() {
            assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
});
