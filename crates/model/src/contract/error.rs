//! How an error is classified for clients (`Msvm_Error`).

use super::number::numbered;

numbered! {
    /// What kind of trouble it is (`Msvm_Error.ErrorType`).
    ErrorType : "ErrorType" {
        Unknown = 0 "Unknown",
        Other = 1 "Other",
        Communications = 2 "Communications",
        QualityOfService = 3 "Quality of service",
        Software = 4 "Software",
        Hardware = 5 "Hardware",
        Environmental = 6 "Environmental",
        Security = 7 "Security",
        Oversubscription = 8 "Oversubscription",
        UnavailableResource = 9 "Unavailable resource",
        UnsupportedOperation = 10 "Unsupported operation",
    }
}

numbered! {
    /// How bad it is (`Msvm_Error.PerceivedSeverity`). The schema has no 1.
    PerceivedSeverity : "PerceivedSeverity" {
        Unknown = 0 "Unknown",
        Low = 2 "Low",
        Medium = 3 "Medium",
        High = 4 "High",
        Fatal = 5 "Fatal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_are_those_of_the_schema() {
        let types: Vec<u16> = ErrorType::ALL.iter().map(|one| one.number()).collect();
        assert!(types.iter().copied().eq(0..=10));
        let severities: Vec<u16> = PerceivedSeverity::ALL
            .iter()
            .map(|one| one.number())
            .collect();
        assert_eq!(severities, [0, 2, 3, 4, 5]);
        assert!(PerceivedSeverity::try_from(1).is_err());
    }
}
