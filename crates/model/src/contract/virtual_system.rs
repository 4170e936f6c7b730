//! Whether a VM runs.

use super::number::numbered;

numbered! {
    /// What a VM is doing (`Msvm_ComputerSystem.EnabledState`): the values this service shows.
    EnabledState : "EnabledState" {
        Unknown = 0 "Unknown",
        Enabled = 2 "Running",
        Disabled = 3 "Off",
        ShuttingDown = 4 "Shutting down",
        Paused = 32768 "Paused",
        Starting = 32770 "Starting",
        Stopping = 32774 "Stopping",
    }
}

impl EnabledState {
    /// Whether the guest holds its disks: nothing else may write them.
    #[must_use]
    pub const fn may_write(self) -> bool {
        match self {
            // What is not known is taken for the worse.
            Self::Unknown
            | Self::Enabled
            | Self::ShuttingDown
            | Self::Paused
            | Self::Starting
            | Self::Stopping => true,
            Self::Disabled => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vm_that_is_off_leaves_its_disks_alone() {
        for &state in EnabledState::ALL {
            assert_eq!(state.may_write(), state.number() != 3, "{state}");
        }
    }

    #[test]
    fn numbers_beyond_the_schema_are_refused() {
        assert_eq!(EnabledState::try_from(32774), Ok(EnabledState::Stopping));
        for number in [1, 5, 32769, 65538] {
            assert!(EnabledState::try_from(number).is_err(), "{number}");
        }
    }
}
