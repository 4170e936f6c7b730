//! The last part of the drill: the VM moves to beta as planned, and nothing is lost.

use lifeboat_rest::client::VmRequest;
use lifeboat_sys::clock::Stopwatch;

use super::drill::{Drill, Site, TakenOver, VM};
use super::guest::Running;
use super::report::{By, End, Failover, ms};
use crate::exit::Failure;

impl Drill {
    /// From the last write at alpha to the first at beta, and to alpha as the replica.
    pub(super) fn planned(&mut self, guest: Running) -> Result<(), Failure> {
        let guest = self.phase("planned failover to beta", |drill| drill.hand_over(guest))?;
        self.phase("alpha is the replica again", |drill| {
            let what = "reversed to alpha after the planned failover";
            drill.reverse(what, Site::Beta, By::Maps)?;
            drill.wait_for_cycles(Site::Beta)?;
            let what = "test failover at alpha, in the end";
            drill.test_failover(what, Site::Alpha, &guest, |_| Ok(()))?;
            let what = "the VM at beta, in the end";
            drill.compare_present(what, Site::Beta, &guest)?;
            guest.stop()?;
            Ok(drill.host(Site::Beta).stop_vm(VM)?)
        })
    }

    fn hand_over(&mut self, guest: Running) -> Result<Running, Failure> {
        let watch = Stopwatch::start();
        let history = guest.stop()?;
        let end = self.watch.elapsed();
        let alpha = self.host(Site::Alpha);
        alpha.stop_vm(VM)?;
        let prepare = VmRequest::PrepareFailover;
        alpha.request(VM, "prepare the planned failover", &prepare)?;
        let what = "planned failover";
        let prepared_ms = ms(watch.elapsed());
        let TakenOver {
            clients,
            requests,
            rto_ms,
        } = self.fail_over(what, Site::Beta, None, &history)?;
        let lost = history.lost_after(requests, end);
        let all = history.count();
        self.prove(
            "a planned failover loses nothing",
            requests == all,
            format!("{requests} of {all} requests are there"),
        )?;
        self.report.failovers.push(Failover {
            what: "planned",
            to: Site::Beta.name(),
            // From the guest's last write, with its shutdown.
            rto_ms: prepared_ms + rto_ms,
            lost: lost.into(),
            end: End::Reversed,
        });
        let guest = self.guest(clients, history.fork(requests));
        Ok(Running::start(guest)?)
    }
}
