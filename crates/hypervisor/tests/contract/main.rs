//! The rules of the port, run through each driver, and what each driver promises beyond them.

mod rig;
mod rules;
mod volume_driver;

/// Makes a test of every rule, each with a new rig from `$rig`.
macro_rules! contract {
    ($rig:expr => $($rule:ident),+ $(,)?) => {
        $(
            #[test]
            fn $rule() {
                crate::rules::$rule(&$rig);
            }
        )+
    };
}

/// Every rule there is, for the driver that `$rig` makes.
macro_rules! whole_contract {
    ($rig:expr) => {
        crate::contract! { $rig =>
            a_vm_that_is_not_defined_is_refused,
            starting_and_stopping_twice_is_as_once,
            what_the_guest_wrote_is_in_the_image_after_a_stop,
            a_running_vm_is_neither_defined_again_nor_forgotten,
            disks_that_are_not_those_of_the_definition_are_refused,
            an_image_that_is_in_use_is_refused,
            without_tracking_a_view_has_no_bitmap,
            a_view_shows_one_instant_and_marks_every_change_before_it,
            a_vm_that_is_off_is_frozen_as_a_running_one,
            there_is_one_view_at_a_time,
            a_view_stays_while_its_vm_stops_and_starts,
            receipts_drop_what_came_before,
            a_moment_names_one_instant,
            present_disks_are_read_running_and_off,
            tracking_is_kept_when_a_vm_is_defined_again,
            another_image_makes_tracking_unknown,
            moved_disks_keep_their_guest_and_their_tracking,
            a_move_that_fails_changes_nothing,
            a_device_serves_as_a_disk,
            a_forgotten_vm_leaves_its_disks_and_no_tracking,
        }
    };
}
pub(crate) use {contract, whole_contract};
