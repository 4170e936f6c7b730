//! The calls as they travel: paths, methods, bounds.

use http::{Method, StatusCode};
use lifeboat_model::RelationshipId;
use serde::{Deserialize, Serialize};

use crate::message::{DigestQuery, Refusal, RefusalCode, VERSION};

/// The longest message, in bytes of JSON.
pub const MAX_MESSAGE: usize = 256 << 10;
/// The longest answer, in bytes: maps of changed ranges may be long.
pub const MAX_ANSWER: usize = 16 << 20;
/// The longest refusal.
pub(crate) const MAX_REFUSAL: usize = 64 << 10;
/// The largest piece in which a body is sent.
pub(crate) const PIECE: usize = 1 << 20;
/// The longest value of [`PLACE`].
pub(crate) const MAX_PLACE: usize = 4 << 10;

/// The header of a PUT that says, in JSON, where the body belongs.
pub(crate) const PLACE: &str = "lifeboat-place";

/// What a host can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Introduce,
    MakeReplica,
    BeginSession,
    BeginCopy,
    Digests,
    Verified,
    PutChunk,
    PutDelta,
    PlannedFailover,
    GuestStatus,
    TakeOver,
    Adopt,
    ChangeSettings,
    Remove,
}

impl Call {
    pub(crate) const ALL: [Self; 14] = [
        Self::Introduce,
        Self::MakeReplica,
        Self::BeginSession,
        Self::BeginCopy,
        Self::Digests,
        Self::Verified,
        Self::PutChunk,
        Self::PutDelta,
        Self::PlannedFailover,
        Self::GuestStatus,
        Self::TakeOver,
        Self::Adopt,
        Self::ChangeSettings,
        Self::Remove,
    ];

    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Introduce => "/peer/v1/introduction",
            Self::MakeReplica => "/peer/v1/make-replica",
            Self::BeginSession => "/peer/v1/begin-session",
            Self::BeginCopy => "/peer/v1/begin-copy",
            Self::Digests => "/peer/v1/digests",
            Self::Verified => "/peer/v1/verified",
            Self::PutChunk => "/peer/v1/chunk",
            Self::PutDelta => "/peer/v1/delta",
            Self::PlannedFailover => "/peer/v1/planned-failover",
            Self::GuestStatus => "/peer/v1/guest-status",
            Self::TakeOver => "/peer/v1/take-over",
            Self::Adopt => "/peer/v1/adopt",
            Self::ChangeSettings => "/peer/v1/change-settings",
            Self::Remove => "/peer/v1/remove",
        }
    }

    pub(crate) const fn method(self) -> Method {
        match self {
            Self::Introduce => Method::GET,
            Self::PutChunk | Self::PutDelta => Method::PUT,
            Self::MakeReplica
            | Self::BeginSession
            | Self::BeginCopy
            | Self::Digests
            | Self::Verified
            | Self::PlannedFailover
            | Self::GuestStatus
            | Self::TakeOver
            | Self::Adopt
            | Self::ChangeSettings
            | Self::Remove => Method::POST,
        }
    }

    /// Which call a request is. Only the exact path is one: nothing is decoded or resolved.
    pub(crate) fn find(method: &Method, path: &str) -> Result<Self, NoCall> {
        let Some(call) = Self::ALL.into_iter().find(|call| call.path() == path) else {
            let version = path
                .strip_prefix("/peer/v")
                .and_then(|rest| rest.split('/').next());
            return Err(match version {
                Some(version)
                    if version != "1"
                        && (1..=9).contains(&version.len())
                        && version.bytes().all(|c| c.is_ascii_digit()) =>
                {
                    NoCall::Version
                }
                Some(_) | None => NoCall::Path,
            });
        };
        if call.method() == *method {
            Ok(call)
        } else {
            Err(NoCall::Method(call))
        }
    }
}

/// Why a request is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoCall {
    Path,
    Version,
    Method(Call),
}

impl NoCall {
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Path => refusal(
                RefusalCode::NotFound,
                "no such call; see the description of the protocol between hosts",
            ),
            Self::Version => refusal(
                RefusalCode::Version,
                format!(
                    "this host speaks version {VERSION} of the protocol; bring both hosts to the same release"
                ),
            ),
            Self::Method(call) => refusal(
                RefusalCode::Invalid,
                format!("{} is asked with {}", call.path(), call.method()),
            ),
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Path => StatusCode::NOT_FOUND,
            Self::Version => StatusCode::NOT_IMPLEMENTED,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// Asks what [`crate::Host::guest_status`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuestQuery {
    pub(crate) relationship: RelationshipId,
}

/// The status that goes with a refusal. The body decides; the status is for those who look
/// from outside.
pub(crate) const fn status(code: RefusalCode) -> StatusCode {
    match code {
        RefusalCode::NotAuthorized => StatusCode::FORBIDDEN,
        RefusalCode::NotFound => StatusCode::NOT_FOUND,
        RefusalCode::InvalidState | RefusalCode::OtherLineage | RefusalCode::NotContinuous => {
            StatusCode::CONFLICT
        }
        RefusalCode::Invalid => StatusCode::BAD_REQUEST,
        RefusalCode::Full => StatusCode::INSUFFICIENT_STORAGE,
        RefusalCode::Busy => StatusCode::SERVICE_UNAVAILABLE,
        RefusalCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        RefusalCode::Version => StatusCode::NOT_IMPLEMENTED,
    }
}

pub(crate) fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
    }
}

/// Bytes of one digest.
const DIGEST: u64 = 16;
/// The most that one query covers.
const MAX_QUERIED: u64 = 1 << 30;
const MAX_RANGES: usize = 4096;

/// Why a [`DigestQuery`] makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigestQuery {
    #[error("digests are of 4096 or 65536 bytes, not of {unit}")]
    Unit { unit: u32 },
    #[error("the key has 64 hexadecimal digits")]
    Key,
    #[error("there are {count} ranges, and at most {MAX_RANGES} at once")]
    Ranges { count: usize },
    #[error("range {index} is empty, not aligned, or not behind the one before")]
    Range { index: usize },
    #[error("the ranges cover more than {MAX_QUERIED} bytes")]
    Extent,
}

impl DigestQuery {
    /// How many bytes the answer has. Whether the disk is so large is not checked; only the
    /// last range may end within a unit, at the disk's end.
    ///
    /// # Errors
    /// When the query contradicts its own rules.
    pub fn answer_length(&self) -> Result<u64, InvalidDigestQuery> {
        let unit = match self.unit {
            4096 | 65536 => u64::from(self.unit),
            unit => return Err(InvalidDigestQuery::Unit { unit }),
        };
        if self.key.len() != 64 || !self.key.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(InvalidDigestQuery::Key);
        }
        if self.ranges.len() > MAX_RANGES {
            return Err(InvalidDigestQuery::Ranges {
                count: self.ranges.len(),
            });
        }
        let (mut units, mut bytes, mut end) = (0, 0_u64, 0);
        for (index, range) in self.ranges.iter().enumerate() {
            let last = index + 1 == self.ranges.len();
            let aligned =
                range.start.is_multiple_of(unit) && (last || range.end.is_multiple_of(unit));
            if !aligned || range.start < end || range.end <= range.start {
                return Err(InvalidDigestQuery::Range { index });
            }
            let length = range.end - range.start;
            bytes = bytes.saturating_add(length);
            if bytes > MAX_QUERIED {
                return Err(InvalidDigestQuery::Extent);
            }
            units += length.div_ceil(unit);
            end = range.end;
        }
        Ok(units * DIGEST)
    }
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "a query has a list of ranges, and one is a list too"
)]
mod tests {
    use super::*;
    use lifeboat_model::relationship::MAX_ANCESTORS;
    use lifeboat_model::{DiskId, Lineage, LineageId, Sequence, Timestamp};

    use crate::message::SessionRequest;

    #[test]
    fn a_message_has_room_for_all_lineages_that_are_remembered() {
        let lineage = Lineage {
            counter: u32::MAX,
            id: LineageId::from_bytes([0xff; 16]),
            forked_from: Some((LineageId::from_bytes([0xff; 16]), Sequence::new(u64::MAX))),
        };
        let request = SessionRequest {
            relationship: RelationshipId::from_bytes([1; 16]),
            lineage,
            // While failed over one more than is remembered is told.
            ancestors: vec![lineage; MAX_ANCESTORS + 1],
            last_receipt: None,
            wall_clock: Timestamp::from_micros(u64::MAX),
        };
        let message = serde_json::to_vec(&request).unwrap();
        let room_for_the_rest = 64 << 10;
        assert!(
            message.len() + room_for_the_rest <= MAX_MESSAGE,
            "{} bytes",
            message.len()
        );
    }

    fn query(unit: u32, ranges: &[std::ops::Range<u64>]) -> DigestQuery {
        DigestQuery {
            relationship: RelationshipId::from_bytes([1; 16]),
            lineage: LineageId::from_bytes([2; 16]),
            disk: "sda".parse::<DiskId>().unwrap(),
            ranges: ranges.to_vec(),
            unit,
            key: "0f".repeat(32),
            at: None,
        }
    }

    #[test]
    fn the_answer_has_one_digest_for_each_unit() {
        assert_eq!(query(4096, &[]).answer_length(), Ok(0));
        assert_eq!(
            query(4096, &[0..4096, 8192..12_289]).answer_length(),
            Ok(3 * 16)
        );
        assert_eq!(query(65536, &[0..1 << 30]).answer_length(), Ok(16384 * 16));
        assert_eq!(query(4096, &[0..1 << 30]).answer_length(), Ok(4 << 20));
    }

    #[test]
    fn queries_that_contradict_themselves_are_refused() {
        use InvalidDigestQuery as Why;
        let unit = |unit| query(unit, &[0..65536]).answer_length();
        assert_eq!(unit(0), Err(Why::Unit { unit: 0 }));
        assert_eq!(unit(512), Err(Why::Unit { unit: 512 }));
        let ranges = |ranges: &[std::ops::Range<u64>]| query(4096, ranges).answer_length();
        assert_eq!(ranges(&[1..4096]), Err(Why::Range { index: 0 }));
        assert_eq!(ranges(&[4096..4096]), Err(Why::Range { index: 0 }));
        assert_eq!(ranges(&[0..100, 4096..8192]), Err(Why::Range { index: 0 }));
        assert_eq!(
            ranges(&[8192..12_288, 0..4096]),
            Err(Why::Range { index: 1 })
        );
        assert_eq!(ranges(&[0..(1 << 30) + 1]), Err(Why::Extent));
        let reversed = std::ops::Range {
            start: 4096,
            end: 0,
        };
        assert_eq!(ranges(&[reversed]), Err(Why::Range { index: 0 }));
        assert_eq!(ranges(&[0..u64::MAX]), Err(Why::Extent));
        assert_eq!(ranges(&vec![0..1; 5000]), Err(Why::Ranges { count: 5000 }));
        for key in ["", "zz", &"g".repeat(64), &"0".repeat(63)] {
            let mut query = query(4096, &[]);
            key.clone_into(&mut query.key);
            assert_eq!(query.answer_length(), Err(Why::Key));
        }
    }

    #[test]
    fn only_the_exact_path_and_method_is_a_call() {
        for call in Call::ALL {
            assert_eq!(Call::find(&call.method(), call.path()), Ok(call));
            assert_eq!(
                Call::find(&Method::DELETE, call.path()),
                Err(NoCall::Method(call))
            );
        }
        for path in [
            "/",
            "",
            "/peer",
            "/peer/v1",
            "/peer/v1/",
            "/peer/v1/remove/",
            "/peer/v1//remove",
            "/peer/v1/../v1/remove",
            "/peer/v1/%72emove",
            "/peer/V1/remove",
            "/peer/v/remove",
            "//peer/v1/remove",
            "/peer/v1/remove/../remove",
            "/peer/vx/remove",
        ] {
            assert_eq!(Call::find(&Method::POST, path), Err(NoCall::Path), "{path}");
        }
        assert_eq!(
            Call::find(&Method::GET, "/peer/v2/introduction"),
            Err(NoCall::Version)
        );
    }
}
