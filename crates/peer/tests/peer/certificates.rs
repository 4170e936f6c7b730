//! The folder of certificates: what it lets in, what it keeps out, what a crash leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lifeboat_peer::PeerTls;
use lifeboat_peer::pki::{
    Anonymous, CertificateInfo, Fingerprint, Identity, Pki, PkiError, RevocationCause, Role,
    TrustedFor,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::{Party, days_ago, in_days, names, now};

fn info(pem: &str) -> CertificateInfo {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    CertificateInfo::read(&der).unwrap()
}

fn fingerprint(party: &Party) -> Fingerprint {
    party.pki.authority_info().unwrap().unwrap().fingerprint
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "lock" {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read(&path).unwrap(), mode));
        }
    }
    found.sort();
    found
}

#[test]
fn only_the_owner_reads_keys() {
    let party = Party::with_authority("a.example");
    party.pki.request(&names("a.example")).unwrap();
    let backup = party.folder.path().join("backup");
    party.pki.back_up(&backup).unwrap();
    for (name, content, mode) in files(party.folder.path()) {
        let secret = String::from_utf8_lossy(&content).contains("PRIVATE KEY") || name == "backup";
        if secret {
            assert_eq!(mode, 0o600, "{name}");
        }
    }
    let mode = fs::metadata(party.pki.folder())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_second_authority_is_refused_and_the_first_stays() {
    let party = Party::with_authority("a.example");
    let before = fingerprint(&party);
    let again = party.pki.create_authority("Other", now());
    assert!(matches!(again, Err(PkiError::AuthorityExists { .. })));
    assert_eq!(fingerprint(&party), before);
}

#[test]
fn an_authority_whose_creation_a_crash_has_cut_is_trusted_when_it_is_repeated() {
    let party = Party::empty("a.example");
    party.pki.create_authority("A", now()).unwrap();
    // As if the crash had come after the first file.
    fs::remove_dir_all(party.pki.folder().join("trust")).unwrap();
    let again = party.pki.create_authority("A", now());
    assert!(matches!(again, Err(PkiError::AuthorityExists { .. })));
    party.pki.issue_own(&names("a.example"), now()).unwrap();
    PeerTls::new(&party.pki.load().unwrap()).unwrap();
}

#[test]
fn a_request_brings_a_certificate_for_the_key_that_stayed() {
    let authority = Party::with_authority("a.example");
    let host = Party::joined("b.example", &authority, now());
    let info = host.pki.host_info().unwrap().unwrap();
    assert_eq!(info.names, ["b.example"]);
    assert!(matches!(&info.identity, Identity::Host(name) if name.as_str() == "b.example"));
    PeerTls::new(&host.pki.load().unwrap()).unwrap();
    assert!(!host.pki.folder().join("joining.pem").exists());
    let issued = authority.pki.issued().unwrap();
    assert_eq!(issued.last().unwrap().fingerprint, info.fingerprint);
}

#[test]
fn a_request_for_other_names_than_approved_is_not_signed() {
    let authority = Party::with_authority("a.example");
    let host = Party::empty("b.example");
    let request = host.pki.request(&names("b.example")).unwrap();
    let signed = authority.pki.sign(&request, &names("c.example"), now());
    assert!(matches!(signed, Err(PkiError::OtherNames { .. })));
    let with_address = names("b.example").with_address("10.0.0.1".parse().unwrap());
    let request = host.pki.request(&with_address).unwrap();
    let signed = authority.pki.sign(&request, &names("b.example"), now());
    assert!(matches!(signed, Err(PkiError::OtherNames { .. })));
    assert_eq!(authority.pki.issued().unwrap().len(), 1);
}

#[test]
fn a_request_that_was_changed_or_is_none_is_not_signed() {
    let authority = Party::with_authority("a.example");
    let host = Party::empty("b.example");
    let request = host.pki.request(&names("b.example")).unwrap();
    let digits: String = request
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let der = engine.decode(&digits).unwrap();
    let header = |at: usize| match der[at + 1] {
        0x82 => (4, usize::from(der[at + 2]) << 8 | usize::from(der[at + 3])),
        0x81 => (3, usize::from(der[at + 2])),
        short => (2, usize::from(short)),
    };
    let signed = header(0).0;
    let (inner, length) = header(signed);
    for at in 0..signed + inner + length {
        let mut changed = der.clone();
        changed[at] ^= 1;
        let text = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            engine.encode(&changed)
        );
        assert!(
            authority
                .pki
                .sign(&text, &names("b.example"), now())
                .is_err(),
            "byte {at}"
        );
    }
    for text in ["", "garbage", &"x".repeat(100_000)] {
        assert!(
            authority
                .pki
                .sign(text, &names("b.example"), now())
                .is_err()
        );
    }
}

#[test]
fn a_bundle_of_another_authority_than_expected_is_not_installed() {
    let authority = Party::with_authority("a.example");
    let other = Party::with_authority("o.example");
    let host = Party::empty("b.example");
    let request = host.pki.request(&names("b.example")).unwrap();
    let (_, bundle) = other
        .pki
        .sign(&request, &names("b.example"), now())
        .unwrap();
    let installed = host.pki.install(&bundle, &fingerprint(&authority));
    assert!(matches!(installed, Err(PkiError::OtherAuthority { .. })));
    assert!(host.pki.trusted().unwrap().is_empty());
    assert!(host.pki.host_info().unwrap().is_none());
}

#[test]
fn a_bundle_for_another_key_is_not_installed() {
    let authority = Party::with_authority("a.example");
    let host = Party::empty("b.example");
    let old = host.pki.request(&names("b.example")).unwrap();
    let (_, bundle) = authority
        .pki
        .sign(&old, &names("b.example"), now())
        .unwrap();
    let without = Party::empty("b.example")
        .pki
        .install(&bundle, &fingerprint(&authority));
    assert!(matches!(without, Err(PkiError::NoRequest)));
    host.pki.request(&names("b.example")).unwrap();
    let installed = host.pki.install(&bundle, &fingerprint(&authority));
    assert!(matches!(installed, Err(PkiError::OtherKey)));
}

#[test]
fn a_forged_bundle_with_the_right_authority_in_it_is_not_installed() {
    let authority = Party::with_authority("a.example");
    let forger = Party::with_authority("f.example");
    let host = Party::empty("b.example");
    let request = host.pki.request(&names("b.example")).unwrap();
    let (_, bundle) = forger
        .pki
        .sign(&request, &names("b.example"), now())
        .unwrap();
    let end = bundle.find("-----END CERTIFICATE-----\n").unwrap() + 26;
    let forged = bundle[..end].to_owned() + &authority.pki.authority_certificate().unwrap();
    let installed = host.pki.install(&forged, &fingerprint(&authority));
    assert!(
        matches!(installed, Err(PkiError::Unusable { .. })),
        "{installed:?}"
    );
    assert!(host.pki.host_info().unwrap().is_none());
}

#[test]
fn an_installation_can_be_repeated_after_a_crash_at_any_step() {
    let authority = Party::with_authority("a.example");
    let host = Party::empty("b.example");
    let request = host.pki.request(&names("b.example")).unwrap();
    let waiting = fs::read(host.pki.folder().join("joining.pem")).unwrap();
    let (_, bundle) = authority
        .pki
        .sign(&request, &names("b.example"), now())
        .unwrap();
    let first = host.pki.install(&bundle, &fingerprint(&authority)).unwrap();
    let after = files(host.pki.folder());
    // Everything was written, and the request not yet removed.
    fs::write(host.pki.folder().join("joining.pem"), &waiting).unwrap();
    assert_eq!(
        host.pki.install(&bundle, &fingerprint(&authority)).unwrap(),
        first
    );
    // The same, and the certificate was not yet written.
    fs::write(host.pki.folder().join("joining.pem"), &waiting).unwrap();
    fs::remove_file(host.pki.folder().join("host.pem")).unwrap();
    host.pki.install(&bundle, &fingerprint(&authority)).unwrap();
    // Everything was done, and the answer lost.
    host.pki.install(&bundle, &fingerprint(&authority)).unwrap();
    assert_eq!(files(host.pki.folder()), after);
}

#[test]
fn what_a_crash_left_of_a_write_is_not_taken_for_a_file() {
    let authority = Party::with_authority("a.example");
    let trust = authority.pki.folder().join("trust/hosts");
    fs::write(trust.join("half.pem.new"), "-----BEGIN CERTI").unwrap();
    fs::write(authority.pki.folder().join("host.pem.new"), "half").unwrap();
    fs::set_permissions(
        authority.pki.folder().join("host.pem.new"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    authority.pki.load().unwrap();
    authority.pki.issue_own(&names("a.example"), now()).unwrap();
    let mode = fs::metadata(authority.pki.folder().join("host.pem")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_operators_certificate_carries_name_and_role() {
    let party = Party::with_authority("a.example");
    for role in [Role::Viewer, Role::Operator, Role::Administrator] {
        let operator = party
            .pki
            .issue_operator("J\u{fc}rgen", role, now())
            .unwrap();
        assert!(!format!("{operator:?}").contains("PRIVATE"));
        let read = info(&operator.certificate).identity;
        let name = "J\u{fc}rgen".to_owned();
        assert_eq!(read, Identity::Operator { name, role });
    }
    for name in ["", " a", "a\n", "\u{1b}[2J", &"x".repeat(65)] {
        let issued = party.pki.issue_operator(name, Role::Viewer, now());
        assert!(
            matches!(issued, Err(PkiError::OperatorName { .. })),
            "{name:?}"
        );
    }
}

#[test]
fn a_server_for_operators_lets_in_operators_and_neither_hosts_nor_strangers() {
    let here = Party::with_authority("a.example");
    let there = Party::with_authority("b.example");
    let certificate = there.pki.authority_certificate().unwrap();
    here.pki.trust(&certificate, TrustedFor::Hosts).unwrap();
    let let_in = |anonymous, proof: Option<&str>| {
        let config = here.pki.load().unwrap().operator_server(anonymous).unwrap();
        crate::raw::is_let_in(config, &here, "a.example", proof)
    };
    let operator = |party: &Party| {
        let made = party.pki.issue_operator("x", Role::Viewer, now()).unwrap();
        (made.key + &made.certificate, made.info.serial)
    };
    let (ours, serial) = operator(&here);
    assert!(let_in(Anonymous::Refused, Some(&ours)));
    assert!(!let_in(Anonymous::Refused, None));
    assert!(let_in(Anonymous::Allowed, None));
    let (theirs, _) = operator(&there);
    assert!(!let_in(Anonymous::Allowed, Some(&theirs)));
    let host = fs::read_to_string(here.pki.folder().join("host.pem")).unwrap();
    assert!(!let_in(Anonymous::Allowed, Some(&host)));
    here.pki
        .revoke(&serial, RevocationCause::Retired, now())
        .unwrap();
    assert!(!let_in(Anonymous::Refused, Some(&ours)));
}

#[test]
fn another_organizations_authority_names_no_operators() {
    let here = Party::with_authority("a.example");
    let there = Party::with_authority("b.example");
    let certificate = there.pki.authority_certificate().unwrap();
    here.pki.trust(&certificate, TrustedFor::Hosts).unwrap();
    let trusted = here.pki.trusted().unwrap();
    assert_eq!(trusted.len(), 2);
    for (info, purpose) in trusted {
        let own = info.fingerprint == fingerprint(&here);
        assert_eq!(purpose == TrustedFor::HostsAndOperators, own);
    }
}

#[test]
fn no_certificate_outlives_its_authority() {
    let party = Party::empty("a.example");
    party.pki.create_authority("A", days_ago(3600)).unwrap();
    let info = party.pki.issue_own(&names("a.example"), now()).unwrap();
    assert!(info.not_after <= party.pki.authority_info().unwrap().unwrap().not_after);
    let late = party.pki.issue_own(&names("a.example"), in_days(100));
    assert!(matches!(late, Err(PkiError::AuthorityExpired { .. })));
    assert_eq!(info.remaining(in_days(100)), std::time::Duration::ZERO);
    assert!(info.remaining(now()).as_secs() > 40 * 86_400);
}

#[test]
fn serial_numbers_are_never_shared() {
    let party = Party::with_authority("a.example");
    for _ in 0..20 {
        party.pki.issue_own(&names("a.example"), now()).unwrap();
    }
    let issued = party.pki.issued().unwrap();
    let serials: std::collections::BTreeSet<_> = issued.iter().map(|one| &one.serial).collect();
    assert_eq!(serials.len(), 21);
}

#[test]
fn revocations_add_up_and_the_first_cause_stays() {
    let party = Party::with_authority("a.example");
    let serials: Vec<_> = (0..3)
        .map(|_| {
            party
                .pki
                .issue_own(&names("a.example"), now())
                .unwrap()
                .serial
        })
        .collect();
    party
        .pki
        .revoke(&serials[0], RevocationCause::KeyCompromised, now())
        .unwrap();
    party
        .pki
        .revoke(&serials[1].to_uppercase(), RevocationCause::Retired, now())
        .unwrap();
    party
        .pki
        .revoke(&serials[0], RevocationCause::Superseded, now())
        .unwrap();
    let unknown = party.pki.revoke("00ff", RevocationCause::Retired, now());
    assert!(matches!(unknown, Err(PkiError::UnknownSerial { .. })));
    let revoked = party.pki.revoked(&fingerprint(&party)).unwrap();
    let found: Vec<_> = revoked
        .iter()
        .map(|entry| (entry.serial.clone(), entry.cause))
        .collect();
    assert_eq!(
        found,
        [
            (serials[0].clone(), RevocationCause::KeyCompromised),
            (serials[1].clone(), RevocationCause::Retired),
        ]
    );
}

#[test]
fn only_a_newer_list_of_a_trusted_authority_is_taken_over() {
    let authority = Party::with_authority("a.example");
    let host = Party::joined("b.example", &authority, now());
    let stranger = Party::with_authority("s.example");
    let old = authority.pki.revocations().unwrap();
    let serial = host.pki.host_info().unwrap().unwrap().serial;
    authority
        .pki
        .revoke(&serial, RevocationCause::Retired, now())
        .unwrap();
    let new = authority.pki.revocations().unwrap();
    assert_eq!(
        host.pki.import_revocations(&new).unwrap(),
        fingerprint(&authority)
    );
    host.pki.import_revocations(&new).unwrap();
    assert_eq!(host.pki.revoked(&fingerprint(&authority)).unwrap().len(), 1);
    let older = host.pki.import_revocations(&old);
    assert!(matches!(older, Err(PkiError::OlderRevocations { .. })));
    let strange = host
        .pki
        .import_revocations(&stranger.pki.revocations().unwrap());
    assert!(matches!(strange, Err(PkiError::StrangeRevocations)));
    for text in ["", "garbage", &new[..new.len() / 2]] {
        assert!(host.pki.import_revocations(text).is_err());
    }
    assert_eq!(host.pki.revoked(&fingerprint(&authority)).unwrap().len(), 1);
}

#[test]
fn what_is_no_authority_is_not_trusted() {
    let party = Party::with_authority("a.example");
    let operator = party.pki.issue_operator("a", Role::Viewer, now()).unwrap();
    let one = party.pki.authority_certificate().unwrap();
    for text in [
        operator.certificate.as_str(),
        "",
        "garbage",
        &(one.clone() + &one),
    ] {
        let trusted = party.pki.trust(text, TrustedFor::HostsAndOperators);
        assert!(
            matches!(trusted, Err(PkiError::Unusable { .. })),
            "{trusted:?}"
        );
    }
}

#[test]
fn trust_ends_when_it_is_taken_back_and_never_in_ones_own_authority() {
    let here = Party::with_authority("a.example");
    let there = Party::with_authority("b.example");
    let certificate = there.pki.authority_certificate().unwrap();
    here.pki
        .trust(&certificate, TrustedFor::HostsAndOperators)
        .unwrap();
    here.pki.distrust(&fingerprint(&there)).unwrap();
    assert_eq!(here.pki.trusted().unwrap().len(), 1);
    let again = here.pki.distrust(&fingerprint(&there));
    assert!(matches!(again, Err(PkiError::NotTrusted { .. })));
    let own = here.pki.distrust(&fingerprint(&here));
    assert!(matches!(own, Err(PkiError::OwnAuthority { .. })));
}

#[test]
fn a_folder_comes_back_from_its_backup_as_it_was() {
    let party = Party::with_authority("a.example");
    let serial = party.pki.host_info().unwrap().unwrap().serial;
    party.pki.request(&names("a.example")).unwrap();
    party
        .pki
        .revoke(&serial, RevocationCause::Retired, now())
        .unwrap();
    let backup = party.folder.path().join("backup");
    party.pki.back_up(&backup).unwrap();
    let place = party.folder.path().join("again");
    let restored = Pki::restore(&backup, &place).unwrap();
    assert_eq!(files(restored.folder()), files(party.pki.folder()));
    restored.load().unwrap();
    restored.issue_own(&names("a.example"), now()).unwrap();
    let twice = Pki::restore(&backup, &place);
    assert!(matches!(twice, Err(PkiError::NotEmpty { .. })));
}

#[test]
fn a_backup_that_was_changed_is_not_restored_at_all() {
    let party = Party::with_authority("a.example");
    let backup = party.folder.path().join("backup");
    party.pki.back_up(&backup).unwrap();
    let text = fs::read_to_string(&backup).unwrap();
    let place = party.folder.path().join("again");
    for changed in [
        text.replace("\"host.pem\"", "\"../host.pem\""),
        text.replace("\"host.pem\"", "\"/etc/passwd\""),
        text.replace("\"host.pem\"", "\"trust/hosts/../../x.pem\""),
        text.replace("\"host.pem\"", "\"lock\""),
        text.replacen("\"digest\": \"", "\"digest\": \"0", 1),
        text.replace("certificates-1", "certificates-2"),
        text[..text.len() / 2].to_owned(),
        String::new(),
    ] {
        fs::write(&backup, changed).unwrap();
        let restored = Pki::restore(&backup, &place);
        assert!(
            matches!(restored, Err(PkiError::Damaged { .. })),
            "{restored:?}"
        );
        assert!(!place.exists());
    }
}

#[test]
fn two_changes_at_once_are_refused_and_reading_goes_on() {
    let party = Party::with_authority("a.example");
    let lock = fs::File::options()
        .write(true)
        .open(party.pki.folder().join("lock"))
        .unwrap();
    lock.lock().unwrap();
    let busy = party.pki.issue_own(&names("a.example"), now());
    assert!(matches!(busy, Err(PkiError::InUse { .. })));
    party.pki.load().unwrap();
    drop(lock);
    party.pki.issue_own(&names("a.example"), now()).unwrap();
}

#[test]
fn damaged_files_are_named() {
    for name in ["host.pem", "authority.pem", "issued.json"] {
        let party = Party::with_authority("a.example");
        fs::write(party.pki.folder().join(name), "damaged").unwrap();
        let loaded = party.pki.load().map(|_| ());
        let issued = party.pki.issue_own(&names("a.example"), now());
        let error = loaded.and(issued.map(|_| ())).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(name) || text.contains("file"),
            "{name}: {text}"
        );
    }
}

mod damage {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn damaged_certificates_are_read_or_refused_without_a_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let party = shared();
            let mut der = party.to_vec();
            for (at, flip) in flips {
                let at = at.index(der.len());
                der[at] ^= flip;
            }
            let _ = CertificateInfo::read(&der);
            let _ = CertificateInfo::read(&der[..cut.index(der.len())]);
        }
    }

    /// One certificate for all cases.
    fn shared() -> &'static [u8] {
        static DER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        DER.get_or_init(|| {
            let party = Party::with_authority("a.example");
            let path = party.pki.folder().join("host.pem");
            CertificateDer::from_pem_file(path).unwrap().to_vec()
        })
    }
}
