//! Giving up a replica: what is newest becomes an ordinary VM, that is off.

use crate::error::{Refused, StoreError};
use crate::record::Record;
use crate::store::Store;

impl Store {
    /// Ends the replication of this replica: the heads, as the newest applied moment left them,
    /// are the VM's own disks from now on; all recovery points and all that waits in the
    /// spool go. Durable on return; a crash after the record `Flattened` leaves the rest to
    /// the next opening. There is no way back but [`rejoin`](Self::rejoin).
    ///
    /// # Errors
    /// Refused unless the store is a replica that holds one moment, and while points are read.
    pub fn flatten(&mut self) -> Result<(), StoreError> {
        self.refuse_unless_replica()?;
        self.refuse_readers()?;
        self.change(|store| {
            store.complete_apply()?;
            store.refuse_mixed("keep as the VM's disks")?;
            if store.state.applied.is_none() {
                return Err(Refused::NothingApplied { purpose: "keep" }.into());
            }
            // The VM uses the wrappers as soon as the record is written.
            store.renew_wrappers()?;
            store.save(&Record::Flattened)?;
            store.clear_after_commit()?;
            store.empty_trash()
        })
    }
}
