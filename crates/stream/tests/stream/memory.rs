//! Memory stays bounded whatever a stream says: the operating system holds the reader to it.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::process::{Command, Output};
use std::rc::Rc;

use lifeboat_stream::{
    DecodeError, Decoder, Encoder, Frame, Kind, PayloadError, copy_verified, verify,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::forge::{BLOB, DATA, Fields, Forge, MANIFEST, bomb};
use crate::sample::{WHOLE, ZSTD, header, manifest, text};

const THIS_TEST: &str = "memory::reading_needs_less_than_96_mib_whatever_the_stream_says";

/// Names the scenario to a copy of this process that runs it under the limit.
const SCENARIO: &str = "LIFEBOAT_STREAM_MEMORY_SCENARIO";

const ALLOWANCE: u64 = 96 << 20;

const FRAME: usize = 1 << 20;

const LONG_FRAMES: u64 = 4096;

/// Made before the limit is set, run under it.
type Scenario = (&'static str, fn() -> Box<dyn FnOnce()>);

const SCENARIOS: [Scenario; 5] = [
    ("decode 4 GiB", || Box::new(decode_a_long_stream)),
    ("copy 4 GiB", || Box::new(copy_a_long_stream)),
    ("claims", || Box::new(refuse_huge_claims)),
    ("bomb", || {
        let stream = bomb_stream();
        Box::new(move || refuse_a_bomb(&stream))
    }),
    (CONTROL, || Box::new(take_too_much)),
];

/// Must die, or the limit proves nothing.
const CONTROL: &str = "allocate more than is allowed";

#[test]
fn reading_needs_less_than_96_mib_whatever_the_stream_says() {
    if let Ok(name) = std::env::var(SCENARIO) {
        return run_limited(&name);
    }
    for (name, _) in SCENARIOS {
        let output = spawn(name);
        let survives = name != CONTROL;
        assert_eq!(output.status.success(), survives, "{name}: {output:?}");
    }
}

fn spawn(name: &str) -> Output {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", THIS_TEST, "--nocapture"])
        .env(SCENARIO, name)
        .output()
        .unwrap();
    let ran = String::from_utf8_lossy(&output.stdout).contains(&format!("limited: {name}"));
    assert!(ran, "the scenario {name} did not start: {output:?}");
    output
}

fn run_limited(name: &str) {
    let (_, prepare) = SCENARIOS
        .into_iter()
        .find(|(known, _)| *known == name)
        .expect("the parent names a scenario");
    let scenario = prepare();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let used_kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .expect("Linux says how much address space a process has");
    println!("limited: {name}");
    let limit = Rlimit {
        current: Some(used_kib * 1024 + ALLOWANCE),
        maximum: getrlimit(Resource::As).maximum,
    };
    setrlimit(Resource::As, limit).unwrap();
    scenario();
}

fn take_too_much() {
    let size = ALLOWANCE as usize + (32 << 20);
    let taken = vec![1_u8; size];
    assert_eq!(taken.iter().rposition(|&byte| byte == 1), Some(size - 1));
}

/// A stream of 4 GiB of data that compress and 60 TiB of zeroes, made while it is read.
struct LongStream {
    encoder: Option<Encoder<Shared>>,
    made: Shared,
    taken: usize,
    frames: u64,
    plain: Vec<u8>,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LongStream {
    fn new() -> Self {
        let made = Shared::default();
        let manifest = manifest(&[64 << 40]);
        let encoder = Encoder::new(made.clone(), &header(Kind::Delta), &manifest, ZSTD).unwrap();
        Self {
            encoder: Some(encoder),
            made,
            taken: 0,
            frames: 0,
            plain: text(FRAME),
        }
    }

    fn make_more(&mut self) {
        self.made.0.borrow_mut().clear();
        self.taken = 0;
        let Some(mut encoder) = self.encoder.take() else {
            return;
        };
        if self.frames < LONG_FRAMES {
            self.plain[0] = self.frames as u8;
            let offset = self.frames * FRAME as u64;
            encoder.data(0, offset, &self.plain).unwrap();
        } else if self.frames == LONG_FRAMES {
            encoder.zero(0, 4 << 40, 60 << 40).unwrap();
        } else {
            encoder.finish().unwrap();
            return;
        }
        self.frames += 1;
        self.encoder = Some(encoder);
    }
}

impl Read for LongStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.made.0.borrow().len() {
            self.make_more();
        }
        let made = self.made.0.borrow();
        let read = (&made[self.taken..]).read(buffer)?;
        self.taken += read;
        Ok(read)
    }
}

fn decode_a_long_stream() {
    let mut decoder = Decoder::new(LongStream::new(), &WHOLE).unwrap();
    let mut data_bytes = 0;
    while let Some(frame) = decoder.next_frame().unwrap() {
        if let Frame::Data { bytes, .. } = frame {
            data_bytes += bytes.len() as u64;
        }
    }
    assert_eq!(data_bytes, 4 << 30);
    assert_eq!(decoder.footer().unwrap().zero_bytes, 60 << 40);
}

fn copy_a_long_stream() {
    let summary = copy_verified(LongStream::new(), io::sink(), &WHOLE).unwrap();
    assert_eq!(summary.footer.data_bytes, 4 << 30);
}

fn refuse_huge_claims() {
    const HUGE: u32 = u32::MAX;
    let begun = || Forge::with_disk(2, 64 << 40);
    let claim = |kind, blob| Fields {
        kind,
        blob,
        plain_len: HUGE,
        stored_len: HUGE,
        extent: if kind == BLOB { u64::MAX } else { 0 },
        ..Fields::default()
    };
    let long_blob = Fields {
        extent: 1 << 40,
        ..Fields::blob(1, 1, &text(FRAME))
    };
    let compressed_claim = Fields {
        encoding: 2,
        stored_len: HUGE,
        plain_len: FRAME as u32,
        ..claim(DATA, 0)
    };
    for stream in [
        Forge::new(2).push(&claim(MANIFEST, 0)).finish(),
        begun().push(&claim(DATA, 0)).finish(),
        begun().push(&claim(BLOB, 1)).finish(),
        begun().push(&long_blob).finish(),
        begun().push(&compressed_claim).finish(),
    ] {
        // What a liar announces never ends.
        let endless = stream.chain(io::repeat(7));
        let error = verify(endless, &WHOLE).unwrap_err();
        assert!(
            matches!(error, DecodeError::Frame { .. } | DecodeError::Rule { .. }),
            "{error}"
        );
    }
}

/// One payload that says it has 1 MiB and decompresses to 1 GiB.
fn bomb_stream() -> Vec<u8> {
    Forge::with_disk(2, 64 << 40)
        .push(&Fields::zstd(0, &vec![0; FRAME], bomb(1 << 30)))
        .finish()
}

fn refuse_a_bomb(stream: &[u8]) {
    let error = verify(stream, &WHOLE).unwrap_err();
    assert!(
        matches!(
            error,
            DecodeError::Payload {
                source: PayloadError::Decompress { .. },
                ..
            }
        ),
        "{error}"
    );
}
