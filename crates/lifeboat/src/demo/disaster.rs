//! The second part of the drill: the primary host dies, the VM goes on at the other host, goes
//! back to an older moment, is kept there, and the dead host returns and becomes the replica.

use std::time::Duration;

use lifeboat_rest::client::VmRequest;
use lifeboat_sys::clock::Stopwatch;

use super::drill::{Drill, STEPS, Site, TakenOver, VM};
use super::guest::Running;
use super::history::History;
use super::protect::Protected;
use super::report::{By, End, Failover, ms};
use crate::exit::Failure;
use crate::size::Bytes;

impl Drill {
    /// From alpha's death to alpha as the replica.
    pub(super) fn disaster(&mut self, protected: Protected) -> Result<Running, Failure> {
        let Protected {
            guest,
            older,
            confirmed,
        } = protected;
        let guest = self.phase("alpha dies, beta takes over", |drill| {
            let (history, end) = drill.kill_in_a_cycle(Site::Alpha, guest)?;
            let left = drill.newest(&history, confirmed, end)?;
            drill.older(older, &history, &left, end)
        })?;
        self.phase("alpha returns as the replica", |drill| {
            let what = "the old primary refuses to start its VM";
            drill.return_fenced(what, Site::Alpha)?;
            let what = "reversed to alpha";
            drill.reverse(what, Site::Beta, By::Maps)?;
            drill.wait_for_cycles(Site::Beta)?;
            let what = "test failover at alpha, after the reversal by maps";
            drill.test_failover(what, Site::Alpha, &guest, |_| Ok(()))
        })?;
        Ok(guest)
    }

    /// Fails over to the newest moment, lets the guest write, and takes it all back. Answers the
    /// way that the guest went.
    fn newest(
        &mut self,
        history: &History,
        confirmed: usize,
        end: Duration,
    ) -> Result<History, Failure> {
        let what = "failover to the newest moment";
        let TakenOver {
            clients,
            requests,
            rto_ms,
        } = self.fail_over(what, Site::Beta, None, history)?;
        self.prove_confirmed(
            "what the replica had confirmed is there",
            requests,
            confirmed,
        )?;
        let lost = history.lost_after(requests, end);
        self.say_lost(lost)?;
        let mut guest = self.guest(clients, history.fork(requests));
        for _ in 0..STEPS {
            guest.step()?;
        }
        guest.flush()?;
        let running = Running::start(guest)?;
        let what = "after the guest went on there";
        self.compare_present(what, Site::Beta, &running)?;
        let left = running.stop()?;
        let beta = self.host(Site::Beta);
        beta.stop_vm(VM)?;
        let watch = Stopwatch::start();
        beta.request(VM, "revert the failover", &VmRequest::RevertFailover)?;
        let revert_ms = ms(watch.elapsed());
        self.say(&format!("  reverted in {revert_ms:.0} ms\n"))?;
        self.report.failovers.push(Failover {
            what: "to the newest moment",
            to: Site::Beta.name(),
            rto_ms,
            lost: lost.into(),
            end: End::Reverted { revert_ms },
        });
        Ok(left)
    }

    /// Fails over to an older point, and commits that while the VM runs.
    fn older(
        &mut self,
        point: u64,
        history: &History,
        left: &History,
        end: Duration,
    ) -> Result<Running, Failure> {
        let what = "failover to an older recovery point";
        let TakenOver {
            clients,
            requests,
            rto_ms,
        } = self.fail_over(what, Site::Beta, Some(point), history)?;
        let guest = self.guest(clients, history.fork(requests).beside(left));
        let guest = Running::start(guest)?;
        let watch = Stopwatch::start();
        let commit = VmRequest::CommitFailover;
        self.host(Site::Beta)
            .request(VM, "commit the failover", &commit)?;
        let commit_ms = ms(watch.elapsed());
        self.say(&format!(
            "  committed in {commit_ms:.0} ms, while the VM ran\n"
        ))?;
        let what = "after the commit, the VM running on";
        self.compare_present(what, Site::Beta, &guest)?;
        self.report.failovers.push(Failover {
            what: "to an older recovery point",
            to: Site::Beta.name(),
            rto_ms,
            lost: history.lost_after(requests, end).into(),
            end: End::CommittedRunning { commit_ms },
        });
        Ok(guest)
    }

    pub(super) fn prove_confirmed(
        &mut self,
        what: &'static str,
        found: usize,
        confirmed: usize,
    ) -> Result<(), Failure> {
        let text = format!("{found} requests are there, {confirmed} were safe");
        self.prove(what, found >= confirmed, text)
    }

    pub(super) fn say_lost(&self, lost: super::history::Lost) -> Result<(), Failure> {
        self.say(&format!(
            "  lost with the host: {} in {} requests, the work of the last {:.1} s\n",
            Bytes(lost.bytes),
            lost.requests,
            lost.time.as_secs_f64()
        ))
    }
}
