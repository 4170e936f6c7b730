//! The third part of the drill: the other host dies too, and with it what it knew about changed
//! blocks. Nobody may guess then: the disks of both sides are compared by digests.

use lifeboat_rest::client::VmRequest;
use lifeboat_sys::clock::Stopwatch;

use super::drill::{Drill, STEPS, Site, TakenOver, VM};
use super::error::DemoError;
use super::guest::Running;
use super::report::{By, End, Failover, ms};
use crate::exit::Failure;

impl Drill {
    /// From beta's death to beta as the replica again.
    pub(super) fn crash(&mut self, guest: Running) -> Result<Running, Failure> {
        let guest = self.phase("beta dies and loses its maps, alpha takes over", |drill| {
            drill.take_back(guest)
        })?;
        self.phase("beta returns as the replica", |drill| {
            let what = "the host that lost its maps refuses to start its VM";
            drill.return_fenced(what, Site::Beta)?;
            let what = "reversed to beta, whose maps are lost";
            drill.reverse(what, Site::Alpha, By::Digests)?;
            drill.wait_for_cycles(Site::Alpha)?;
            let what = "test failover at beta, after the reversal by digests";
            drill.test_failover(what, Site::Beta, &guest, |_| Ok(()))
        })?;
        Ok(guest)
    }

    fn take_back(&mut self, guest: Running) -> Result<Running, Failure> {
        // The second moment from here on holds this for certain.
        let confirmed = guest.history().count();
        self.wait_for_cycles(Site::Beta)?;
        let (history, end) = self.kill_in_a_cycle(Site::Beta, guest)?;
        let maps = self.host(Site::Beta).maps();
        std::fs::remove_dir_all(&maps).map_err(|source| DemoError::File {
            what: "remove",
            path: maps,
            source,
        })?;
        let what = "failover back to alpha";
        let TakenOver {
            clients,
            requests,
            rto_ms,
        } = self.fail_over(what, Site::Alpha, None, &history)?;
        self.prove_confirmed("what alpha had confirmed is there", requests, confirmed)?;
        let lost = history.lost_after(requests, end);
        self.say_lost(lost)?;
        let mut guest = self.guest(clients, history.fork(requests));
        for _ in 0..STEPS {
            guest.step()?;
        }
        let written = Running::start(guest)?.stop()?;
        let alpha = self.host(Site::Alpha);
        alpha.stop_vm(VM)?;
        let watch = Stopwatch::start();
        alpha.request(VM, "commit the failover", &VmRequest::CommitFailover)?;
        let commit_ms = ms(watch.elapsed());
        let clients = alpha.start_vm(VM)?;
        self.say(&format!("  committed in {commit_ms:.0} ms, the VM off\n"))?;
        let guest = Running::start(self.guest(clients, written))?;
        let what = "after the commit, the VM started again";
        self.compare_present(what, Site::Alpha, &guest)?;
        self.report.failovers.push(Failover {
            what: "to the newest moment",
            to: Site::Alpha.name(),
            rto_ms,
            lost: lost.into(),
            end: End::CommittedOff { commit_ms },
        });
        Ok(guest)
    }
}
