//! Tells people that something needs them: by webhook, by mail.
//!
//! One thread looks at what the service says of itself, as any front door does, and decides what
//! is worth an alert; each way to tell people has a queue and a task of its own. Nothing here
//! makes the service wait. Alerts that cannot be delivered after all attempts are logged and
//! counted. Nothing is kept across a restart: what is still wrong then is told again.
//!
//! ```text
//! events, health --noticed--> gate (once an hour) --> queue of a way --attempts--> people
//! ```

mod deliver;
mod gate;
mod mail;
mod notice;
mod webhook;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lifeboat_model::{Timestamp, VmId};
use lifeboat_rest::AlertCounters;
use lifeboat_service::api::{AccessRole, Caller, Operations, VmRef};
use lifeboat_sys::clock;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::deliver::{ATTEMPTS, Way};
use self::gate::Gate;
use self::mail::MailError;
use self::notice::Alert;
use self::webhook::WebhookError;
use super::config::AlertsConfig;

/// How often health is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// How late the end of the daemon is noticed at most.
const PATIENCE: Duration = Duration::from_secs(1);

/// Alerts that wait for one way. More than a bad day makes; the newest is given up then.
const QUEUE: usize = 256;

/// How many events are asked for at a time.
const BATCH: usize = 200;

/// Why nobody can be told.
#[derive(Debug, thiserror::Error)]
pub enum AlertsError {
    #[error("set up the webhook for alerts")]
    Webhook { source: WebhookError },
    #[error("set up mail for alerts")]
    Mail { source: MailError },
    #[error("start the thread that watches for alerts")]
    Thread { source: std::io::Error },
}

/// The watch, until it is stopped.
#[derive(Debug)]
pub struct Alerts {
    stop: Arc<AtomicBool>,
    /// Absent when there is nobody to tell.
    thread: Option<JoinHandle<()>>,
}

impl Alerts {
    /// Watches a service from now on. Events from `started` on count as new.
    ///
    /// # Errors
    /// When a certificate, a password or a token cannot be read.
    pub fn start(
        config: &AlertsConfig,
        host: &str,
        runtime: &Handle,
        operations: Arc<dyn Operations>,
        counters: Arc<AlertCounters>,
        started: Timestamp,
    ) -> Result<Self, AlertsError> {
        let mut ways = Vec::new();
        if let Some(webhook) = &config.webhook {
            let webhook = webhook::Webhook::new(webhook, host)
                .map_err(|source| AlertsError::Webhook { source })?;
            ways.push(Way::Webhook(webhook));
        }
        if let Some(mail) = &config.mail {
            let mail =
                mail::Mail::new(mail, host).map_err(|source| AlertsError::Mail { source })?;
            ways.push(Way::Mail(mail));
        }
        let stop = Arc::new(AtomicBool::new(false));
        if ways.is_empty() {
            return Ok(Self { stop, thread: None });
        }
        let queues = ways
            .into_iter()
            .map(|way| {
                let (queue, waiting) = mpsc::channel(QUEUE);
                let counters = Arc::clone(&counters);
                runtime.spawn(deliver::run(way, waiting, counters, &ATTEMPTS));
                queue
            })
            .collect();
        let watch = Watch {
            operations,
            queues,
            counters,
            gate: Gate::new(Duration::from_secs(config.repeat_seconds)),
            caller: Caller {
                name: "alerts".to_owned(),
                role: AccessRole::Viewer,
            },
            started,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("alerts".to_owned())
            .spawn(move || watch.run())
            .map_err(|source| AlertsError::Thread { source })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the watch. What waits to be delivered is delivered as long as the runtime lives.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.map(JoinHandle::join);
        if let Some(Err(_)) = ended {
            tracing::error!("the watch for alerts ended in a panic");
        }
    }
}

struct Watch {
    operations: Arc<dyn Operations>,
    queues: Vec<mpsc::Sender<Arc<Alert>>>,
    counters: Arc<AlertCounters>,
    gate: Gate,
    caller: Caller,
    started: Timestamp,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn run(mut self) {
        let since_start = clock::Stopwatch::start();
        let newest = self.operations.wait_for_events(0, Duration::ZERO);
        let mut since = newest.saturating_sub(BATCH as u64);
        let mut look_at = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            since = self.follow(since, since_start.elapsed());
            if since_start.elapsed() >= look_at {
                self.look(since_start.elapsed());
                look_at = since_start.elapsed() + LOOK;
            }
            self.operations.wait_for_events(since, PATIENCE);
        }
    }

    /// Looks at the events after one; answers the last one seen.
    fn follow(&mut self, mut since: u64, elapsed: Duration) -> u64 {
        loop {
            let events = match self.operations.events(&self.caller, since, BATCH) {
                Ok(events) => events,
                Err(rejection) => {
                    tracing::warn!("read events for alerts: {rejection}");
                    return since;
                }
            };
            let Some(last) = events.last() else {
                return since;
            };
            since = last.id;
            let started = self.started;
            for event in events.iter().filter(|event| event.at >= started) {
                if let Some(mut alert) = notice::of_event(event) {
                    alert.vm_name = event.vm.and_then(|vm| self.name_of(vm));
                    self.tell(alert, elapsed);
                }
            }
        }
    }

    fn name_of(&self, vm: VmId) -> Option<String> {
        let vm = self.operations.vm(&self.caller, &VmRef::Id(vm));
        vm.ok().map(|vm| vm.name)
    }

    /// Looks at the health of everything.
    fn look(&mut self, elapsed: Duration) {
        let now = clock::wall();
        match notice::look(&*self.operations, &self.caller, now) {
            Ok(alerts) => {
                for alert in alerts {
                    self.tell(alert, elapsed);
                }
            }
            Err(rejection) => tracing::warn!("read health for alerts: {rejection}"),
        }
    }

    fn tell(&mut self, alert: Alert, elapsed: Duration) {
        if !self.gate.admits(&alert, elapsed) {
            self.counters.held_back();
            return;
        }
        let alert = Arc::new(alert);
        for queue in &self.queues {
            if queue.try_send(Arc::clone(&alert)).is_err() {
                self.counters.failed();
                tracing::error!("an alert is given up, too many wait: {}", alert.message);
            }
        }
    }
}
