//! How many things happen at once, and how fast they may send.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_model::{BandwidthLimit, TimeOfDay};
use lifeboat_peer::{Rate, Throttle, ThrottledRead};

use crate::activity::Stop;
use crate::relation::Relation;
use crate::service::Service;
use crate::vm::Vm;

/// How long a transfer goes on before it asks again how fast it may: windows of the day open and
/// settings change meanwhile.
const LOOKS_AGAIN: Duration = Duration::from_secs(1);

/// A number of places; who has none waits.
#[derive(Debug)]
pub(crate) struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One place, until dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    places: &'a Places,
}

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count.max(1)),
            freed: Condvar::new(),
        }
    }

    /// Waits for a place.
    pub(crate) fn take(&self) -> Place<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Place { places: self }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self
            .places
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        self.places.freed.notify_one();
    }
}

/// What is sent of a VM, no faster than its host and itself may at this time of day.
pub(crate) struct Paced<'a, R> {
    body: ThrottledRead<R>,
    service: &'a Service,
    vm: &'a Vm,
    looked: Duration,
}

impl Service {
    /// What is sent, at the pace of the host and the VM, until somebody stops it.
    pub(crate) fn throttled<'a, R: Read>(
        &'a self,
        vm: &'a Vm,
        body: R,
        stop: &Stop,
    ) -> Paced<'a, R> {
        self.set_pace(vm);
        let throttles = vec![Arc::clone(&self.inner.throttle), self.throttle_of(vm)];
        Paced {
            body: ThrottledRead::new(body, throttles, stop.flag()),
            service: self,
            vm,
            looked: self.inner.clock.monotonic(),
        }
    }

    fn throttle_of(&self, vm: &Vm) -> Arc<Throttle> {
        let new = || Throttle::new(Rate::Unlimited, Arc::clone(&self.inner.pace));
        Arc::clone(vm.throttle.get_or_init(|| Arc::new(new())))
    }

    /// Sets how fast the host and the VM may send now.
    fn set_pace(&self, vm: &Vm) {
        let clock = &self.inner.clock;
        let time = TimeOfDay::at(clock.wall(), clock.utc_offset());
        let own = {
            let core = vm.core();
            let settings = core
                .relation()
                .map(|relation: &Relation| &relation.settings);
            settings.map_or(Rate::Unlimited, |settings| {
                rate_at(settings.bandwidth_limit(), time)
            })
        };
        set(
            &self.inner.throttle,
            rate_at(&self.inner.config.bandwidth, time),
        );
        set(&self.throttle_of(vm), own);
    }
}

impl<R: Read> Read for Paced<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let now = self.service.inner.clock.monotonic();
        if now.saturating_sub(self.looked) >= LOOKS_AGAIN {
            self.looked = now;
            self.service.set_pace(self.vm);
        }
        self.body.read(into)
    }
}

fn set(throttle: &Throttle, rate: Rate) {
    if throttle.rate() != rate {
        throttle.change(rate);
    }
}

fn rate_at(limit: &BandwidthLimit, time: TimeOfDay) -> Rate {
    match limit.rate_at(time) {
        lifeboat_model::Rate::Unlimited => Rate::Unlimited,
        lifeboat_model::Rate::Limited(bytes) => Rate::BytesPerSecond(bytes),
    }
}
