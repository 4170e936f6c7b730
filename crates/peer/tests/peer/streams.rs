//! Bodies: whole, refused, cut, cancelled, slow.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lifeboat_peer::{
    Cancel, Limits, LinkError, Pace, Patience, Rate, Refusal, RefusalCode, Throttle, ThrottledRead,
};

use crate::calls::{chunk_place, pair, pair_with};
use crate::raw::SOON;
use crate::support::{PATIENCE, Scripted, delta_place, failed, receipt};

/// Counts what is read of it.
struct Counting<R> {
    inner: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.taken.fetch_add(read as u64, Ordering::SeqCst);
        Ok(read)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn a_body_arrives_byte_for_byte_whatever_its_length() {
    let got: Arc<Mutex<Vec<u8>>> = Arc::default();
    let sink = Arc::clone(&got);
    let host = Scripted::on_delta(move |_, place, body| {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)
            .map_err(|error| failed(&error))?;
        // The end stays the end.
        assert_eq!(body.read(&mut [0; 10]).unwrap(), 0);
        *sink.lock().unwrap() = bytes;
        Ok(receipt(place))
    });
    let pair = pair(host);
    for length in [0, 1, 4095, 1 << 20, (1 << 20) + 1, (5 << 20) + 12345] {
        let sent = pattern(length);
        pair.link
            .put_delta(delta_place(), &mut sent.as_slice())
            .unwrap();
        assert!(*got.lock().unwrap() == sent, "{length} bytes");
    }
}

#[test]
fn a_body_that_is_refused_unread_does_not_leave_the_caller() {
    let host = Scripted::on_delta(|_, _, _| {
        Err(Refusal {
            code: RefusalCode::OtherLineage,
            message: "left behind".to_owned(),
        })
    });
    let pair = pair(host);
    for _ in 0..3 {
        let taken = Arc::new(AtomicU64::new(0));
        let mut body = Counting {
            inner: io::repeat(1),
            taken: Arc::clone(&taken),
        };
        let put = pair.link.put_delta(delta_place(), &mut body);
        assert!(
            matches!(&put, Err(LinkError::Refused(refusal)) if refusal.code == RefusalCode::OtherLineage),
            "{put:?}"
        );
        assert_eq!(taken.load(Ordering::SeqCst), 0);
    }
    pair.link.introduce().unwrap();
}

#[test]
fn a_body_that_is_refused_in_the_middle_is_not_sent_to_its_end() {
    let host = Scripted::on_delta(|_, _, body| {
        io::copy(&mut body.take(3 << 20), &mut io::sink()).unwrap();
        Err(Refusal {
            code: RefusalCode::Full,
            message: "no room".to_owned(),
        })
    });
    let pair = pair(host);
    // The body has no end: only an early answer ends the call.
    let put = pair.link.put_delta(delta_place(), &mut io::repeat(1));
    assert!(
        matches!(&put, Err(LinkError::Refused(refusal)) if refusal.code == RefusalCode::Full),
        "{put:?}"
    );
    pair.link.introduce().unwrap();
}

#[test]
fn a_host_that_panics_in_the_middle_of_a_body_is_an_answer() {
    let host = Scripted::on_delta(|_, _, body| {
        body.read_exact(&mut [0; 100]).unwrap();
        panic!("a bug of the host");
    });
    let pair = pair(host);
    let put = pair.link.put_delta(delta_place(), &mut io::repeat(1));
    assert!(
        matches!(&put, Err(LinkError::Refused(refusal)) if refusal.code == RefusalCode::Failed),
        "{put:?}"
    );
    pair.link.introduce().unwrap();
}

#[test]
fn a_host_that_has_enough_before_the_end_keeps_the_connection() {
    let host = Scripted::on_delta(|_, place, body| {
        body.read_exact(&mut vec![0; 5000]).unwrap();
        Ok(receipt(place))
    });
    let limits = Limits {
        connections_per_peer: 1,
        ..Limits::default()
    };
    let pair = pair_with(host, limits, Patience::default());
    for _ in 0..10 {
        pair.link
            .put_delta(delta_place(), &mut pattern(5000).as_slice())
            .unwrap();
    }
}

#[test]
fn a_source_that_breaks_is_the_callers_error_and_no_end_for_the_host() {
    struct Breaks(usize);
    impl Read for Breaks {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.0 -= 1;
            into.fill(1);
            Ok(into.len())
        }
    }
    let (outcome, reading) = std::sync::mpsc::channel();
    let outcome = Mutex::new(outcome);
    let host = Scripted::on_delta(move |_, place, body| {
        let result = io::copy(body, &mut io::sink());
        outcome.lock().unwrap().send(result.is_err()).unwrap();
        Ok(receipt(place))
    });
    let pair = pair(host);
    for good in [0, 3] {
        let put = pair.link.put_delta(delta_place(), &mut Breaks(good));
        assert!(matches!(put, Err(LinkError::Source(_))), "{put:?}");
        assert!(reading.recv_timeout(PATIENCE).unwrap());
    }
    pair.link.introduce().unwrap();
}

#[test]
fn a_cancelled_transfer_ends_on_both_sides() {
    let (began, begun) = std::sync::mpsc::channel();
    let (outcome, reading) = std::sync::mpsc::channel();
    let (began, outcome) = (Mutex::new(began), Mutex::new(outcome));
    let host = Scripted::on_delta(move |_, place, body| {
        body.read_exact(&mut [0; 1000]).unwrap();
        began.lock().unwrap().send(()).unwrap();
        let result = io::copy(body, &mut io::sink());
        outcome.lock().unwrap().send(result.is_err()).unwrap();
        Ok(receipt(place))
    });
    let pair = pair(host);
    let cancel = Cancel::new();
    let link = pair.link.cancelled_by(cancel.clone());
    let sending = std::thread::spawn(move || link.put_delta(delta_place(), &mut io::repeat(1)));
    begun.recv_timeout(PATIENCE).unwrap();
    cancel.raise();
    assert!(matches!(sending.join().unwrap(), Err(LinkError::Cancelled)));
    assert!(reading.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn a_transfer_that_the_peer_does_not_take_is_cancelled_too() {
    let (began, begun) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let (began, gate) = (Mutex::new(began), Mutex::new(gate));
    let host = Scripted::on_delta(move |_, place, body| {
        body.read_exact(&mut [0; 1]).unwrap();
        began.lock().unwrap().send(()).unwrap();
        let _ = gate.lock().unwrap().recv();
        Ok(receipt(place))
    });
    let pair = pair(host);
    let cancel = Cancel::new();
    let link = pair.link.cancelled_by(cancel.clone());
    let sending = std::thread::spawn(move || link.put_delta(delta_place(), &mut io::repeat(1)));
    begun.recv_timeout(PATIENCE).unwrap();
    cancel.raise();
    assert!(matches!(sending.join().unwrap(), Err(LinkError::Cancelled)));
    drop(go);
}

/// Time that passes when somebody waits for it.
#[derive(Debug, Default)]
struct Frozen(Mutex<std::time::Duration>);

impl Pace for Frozen {
    fn elapsed(&self) -> std::time::Duration {
        *self.0.lock().unwrap()
    }

    fn wait(&self, time: std::time::Duration) {
        *self.0.lock().unwrap() += time;
    }
}

#[test]
fn a_throttled_body_takes_the_time_that_its_rate_allows_and_arrives_whole() {
    let host = Scripted::new();
    let pair = pair(host.clone());
    let pace: Arc<Frozen> = Arc::default();
    let rate = Rate::BytesPerSecond(1_000_000.try_into().unwrap());
    let throttle = Arc::new(Throttle::new(rate, Arc::clone(&pace) as Arc<dyn Pace>));
    let body = pattern(5_000_000);
    let mut throttled = ThrottledRead::new(body.as_slice(), vec![throttle], Cancel::new());
    pair.link.put_chunk(chunk_place(), &mut throttled).unwrap();
    let took = pace.elapsed().as_secs_f64();
    assert!((4.8..5.2).contains(&took), "{took} s");
    assert!(host.heard.lock().unwrap()[0].contains("chunk of 5000000 bytes"));
}

#[test]
fn a_throttle_s_cancellation_is_a_cancellation_of_the_call() {
    let pair = pair(Scripted::new());
    let cancel = Cancel::new();
    cancel.raise();
    let mut body = ThrottledRead::new(io::repeat(1), Vec::new(), cancel);
    let put = pair.link.put_delta(delta_place(), &mut body);
    assert!(matches!(put, Err(LinkError::Cancelled)), "{put:?}");
}

#[test]
fn a_lost_answer_is_an_interruption_and_the_repetition_succeeds() {
    let pair = {
        let first = std::sync::atomic::AtomicBool::new(true);
        let (cut, cutter) = std::sync::mpsc::channel();
        let cut = Mutex::new(cut);
        let host = Scripted::on_delta(move |_, place, body| {
            io::copy(body, &mut io::sink()).map_err(|error| failed(&error))?;
            if first.swap(false, Ordering::SeqCst) {
                let (go, wait) = std::sync::mpsc::channel::<()>();
                cut.lock().unwrap().send(go).unwrap();
                wait.recv().unwrap();
            }
            Ok(receipt(place))
        });
        (pair(host), cutter)
    };
    let (pair, cutter) = pair;
    let relay = crate::raw::relay(pair.served.server.address());
    let address = crate::support::peer_address(relay.address);
    let link =
        lifeboat_peer::Links::to(&pair.caller.links, &address, Some("replica-1.example")).unwrap();
    let calling = Arc::clone(&link);
    let sending = std::thread::spawn(move || {
        calling.put_delta(delta_place(), &mut pattern(3 << 20).as_slice())
    });
    let go = cutter.recv_timeout(PATIENCE).unwrap();
    relay.cut();
    assert!(matches!(
        sending.join().unwrap(),
        Err(LinkError::Interrupted { .. })
    ));
    go.send(()).unwrap();
    let got = link
        .put_delta(delta_place(), &mut pattern(3 << 20).as_slice())
        .unwrap();
    assert_eq!(got, receipt(&delta_place()));
}

#[test]
fn several_streams_to_one_peer_run_at_the_same_time() {
    let together = Arc::new(std::sync::Barrier::new(4));
    let gate = Arc::clone(&together);
    let host = Scripted::on_delta(move |_, place, body| {
        body.read_exact(&mut [0; 1]).unwrap();
        // Passed only when all four are being read.
        gate.wait();
        io::copy(body, &mut io::sink()).map_err(|error| failed(&error))?;
        Ok(receipt(place))
    });
    let pair = pair(host);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let link = Arc::clone(&pair.link);
            std::thread::spawn(move || {
                link.put_delta(delta_place(), &mut pattern(2 << 20).as_slice())
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn an_answer_that_does_not_come_after_a_body_is_timed_out() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let host = Scripted::on_delta(move |_, place, body| {
        io::copy(body, &mut io::sink()).map_err(|error| failed(&error))?;
        let _ = gate.lock().unwrap().recv();
        Ok(receipt(place))
    });
    let patience = Patience {
        durable: SOON,
        ..Patience::default()
    };
    let pair = pair_with(host, Limits::default(), patience);
    let put = pair.link.put_delta(delta_place(), &mut [1; 10].as_slice());
    assert!(matches!(put, Err(LinkError::TimedOut { .. })), "{put:?}");
    drop(go);
}

#[test]
fn a_cycle_without_changes_costs_a_few_kibibytes_on_a_warm_connection() {
    let pair = pair(Scripted::new());
    let relay = crate::raw::relay(pair.served.server.address());
    let address = crate::support::peer_address(relay.address);
    let link =
        lifeboat_peer::Links::to(&pair.caller.links, &address, Some("replica-1.example")).unwrap();
    link.introduce().unwrap();
    let before = relay.passed();
    link.begin_session(crate::calls::session()).unwrap();
    link.put_delta(delta_place(), &mut pattern(512).as_slice())
        .unwrap();
    let cost = relay.passed() - before;
    assert!(cost < 8 << 10, "{cost} bytes");
}
