//! How hosts prove themselves to each other.

use super::number::numbered;

numbered! {
    /// How the hosts of one relationship prove themselves (`AuthenticationType`).
    AuthenticationType : "AuthenticationType" {
        Kerberos = 1 "Kerberos",
        Certificate = 2 "Certificate",
    }
}

numbered! {
    /// What a host accepts from those who replicate to it (`AllowedAuthenticationType`).
    AllowedAuthenticationType : "AllowedAuthenticationType" {
        NotDefined = 0 "Not defined",
        Kerberos = 1 "Kerberos",
        Certificate = 2 "Certificate",
        Both = 3 "Kerberos and certificate",
    }
}

impl AllowedAuthenticationType {
    /// Whether a relationship of this kind is accepted.
    #[must_use]
    pub const fn allows(self, authentication: AuthenticationType) -> bool {
        match (self, authentication) {
            (Self::Both, AuthenticationType::Kerberos | AuthenticationType::Certificate)
            | (Self::Kerberos, AuthenticationType::Kerberos)
            | (Self::Certificate, AuthenticationType::Certificate) => true,
            (Self::NotDefined, AuthenticationType::Kerberos | AuthenticationType::Certificate)
            | (Self::Kerberos, AuthenticationType::Certificate)
            | (Self::Certificate, AuthenticationType::Kerberos) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_type_is_a_set_of_authentication_types() {
        // The numbers of the contract are bit sets of each other.
        for &allowed in AllowedAuthenticationType::ALL {
            for &one in AuthenticationType::ALL {
                assert_eq!(
                    allowed.allows(one),
                    allowed.number() & one.number() != 0,
                    "{allowed} {one}"
                );
            }
        }
    }
}
