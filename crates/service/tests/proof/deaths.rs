//! Flows during which a host dies, once for each of many calls.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::gate::Death;
use crate::world::{At, World};

/// A flow and the host that dies during it.
pub struct Deaths {
    pub seed: u64,
    pub at: At,
    /// Calls at which the host dies, spread over all that the flow makes.
    pub most: u64,
}

impl Deaths {
    /// Runs the flow once to count its calls, then with a death before and after each of those
    /// that are tried. Says how many there were: it is part of the result.
    pub fn each(&self, before: impl Fn(&mut World) + Sync, flow: impl Fn(&mut World) + Sync) {
        let calls = self.run(None, None, &before, &flow).calls;
        assert!(calls > 0, "the flow changes nothing at {:?}", self.at);
        let tried = if dies_everywhere() {
            calls
        } else {
            self.most.min(calls)
        };
        let (next, died) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= 2 * tried {
                    return;
                }
                // The last ones may be later than the flow needs; then nobody dies.
                let call = number / 2 * calls / tried;
                let death = match number % 2 {
                    0 => Death::Before(call),
                    _ => Death::After(call),
                };
                // Each second time once more, soon after it has started again.
                let once_more = (number / 2 % 2 == 1).then_some(Death::Before(number % 7));
                let outcome = self.run(Some(death), once_more, &before, &flow);
                died.fetch_add(outcome.deaths, Ordering::SeqCst);
            }
        };
        // Most of the time hosts wait for each other.
        std::thread::scope(|scope| {
            scope.spawn(work);
            work();
        });
        println!(
            "{:?} makes {calls} calls; it died {} times in {} runs",
            self.at,
            died.into_inner(),
            2 * tried
        );
    }

    fn run(
        &self,
        death: Option<Death>,
        once_more: Option<Death>,
        before: &impl Fn(&mut World),
        flow: &impl Fn(&mut World),
    ) -> Outcome {
        let _said = Said(death, once_more);
        let mut world = World::new(self.seed, &[("vda", crate::crashes::DISK)]);
        before(&mut world);
        let site = world.site(self.at);
        let (calls, lives) = (site.gate.calls(), site.lives());
        site.gate.expose();
        if let Some(death) = death {
            site.gate.die_at(death);
        }
        world.once_more = once_more;
        flow(&mut world);
        world.site(self.at).gate.live_on();
        Outcome {
            calls: world.site(self.at).gate.calls().saturating_sub(calls),
            deaths: u64::from(world.site(self.at).lives() - lives),
        }
    }
}

/// Whether a host dies at every call that a flow makes: that takes long, so only when asked.
fn dies_everywhere() -> bool {
    std::env::var_os("LIFEBOAT_TEST_EVERY_DEATH").is_some()
}

/// Says which death it was when the flow fails.
struct Said(Option<Death>, Option<Death>);

impl Drop for Said {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this was after {:?} and {:?}", self.0, self.1);
        }
    }
}

struct Outcome {
    calls: u64,
    deaths: u64,
}
