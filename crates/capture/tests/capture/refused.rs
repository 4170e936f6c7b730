//! Plans and servers that cannot be captured.

use std::io::{self, Write};

use lifeboat_capture::{CaptureError, CapturePlan, capture};
use lifeboat_nbd::{DIRTY, NbdUri};
use lifeboat_stream::Kind;

use super::replica::{pattern, plan, source, take};
use super::shaped::{Served, Shaped, everywhere, image, serve};

fn served(size: usize) -> Served {
    serve(Shaped {
        size: size as u64,
        minimum: 1,
        content: image(pattern(1, size)),
        dirty: everywhere(size as u64, DIRTY),
        allocation: Some(everywhere(size as u64, 0)),
        allocation_asked: Default::default(),
    })
}

/// The error, and its causes, as an operator reads them.
fn refusal(plan: &CapturePlan) -> (CaptureError, String) {
    let error = take(plan).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    (error, text)
}

#[test]
fn a_bitmap_that_is_not_there_never_means_that_nothing_has_changed() {
    let served = served(8192);
    let plan = plan(Kind::Delta, vec![source("a", &served.uri, Some("other"))]);
    let (error, text) = refusal(&plan);
    assert!(
        matches!(error, CaptureError::BitmapMissing { .. }),
        "{text}"
    );
    assert!(
        text.contains("\"other\"") && text.contains("disk a"),
        "{text}"
    );
}

#[test]
fn a_disk_that_does_not_consist_of_sectors_is_refused() {
    let served = served(1000);
    let (error, text) = refusal(&plan(Kind::Initial, vec![source("a", &served.uri, None)]));
    assert!(matches!(error, CaptureError::Size { .. }), "{text}");
    assert!(
        text.contains("1000 bytes") && text.contains("multiple of 512"),
        "{text}"
    );
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let served = served(8192);
    let (error, text) = refusal(&plan(
        Kind::Initial,
        vec![source("a", &served.uri, Some("m"))],
    ));
    assert!(
        matches!(error, CaptureError::InitialByBitmap { .. }),
        "{text}"
    );
    let (error, text) = refusal(&plan(Kind::Delta, vec![source("a", &served.uri, Some(""))]));
    assert!(matches!(error, CaptureError::BitmapName { .. }), "{text}");
    let (error, text) = refusal(&plan(Kind::Initial, Vec::new()));
    assert!(matches!(error, CaptureError::Plan { .. }), "{text}");
    let twice = vec![
        source("a", &served.uri, None),
        source("a", &served.uri, None),
    ];
    let (error, text) = refusal(&plan(Kind::Initial, twice));
    assert!(matches!(error, CaptureError::Plan { .. }), "{text}");
    let mut unnamed = plan(Kind::Delta, vec![source("a", &served.uri, Some("m"))]);
    unnamed.header.base = None;
    let (error, text) = refusal(&unnamed);
    assert!(matches!(error, CaptureError::Encode { .. }), "{text}");
}

#[test]
fn nothing_is_written_unless_every_disk_is_there() {
    let served = served(8192);
    let nowhere = NbdUri::unix("/nonexistent/socket", "b").unwrap();
    let plan = plan(
        Kind::Initial,
        vec![source("a", &served.uri, None), source("b", &nowhere, None)],
    );
    let mut stream = Vec::new();
    let error = capture(&plan, &mut stream, &mut |_| {}).unwrap_err();
    assert!(
        matches!(&error, CaptureError::Connect { disk, .. } if disk.as_str() == "b"),
        "{error}"
    );
    assert!(stream.is_empty());
}

/// A writer with room for so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.0.min(bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= room;
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_without_room_fails_the_capture() {
    let served = served(4 << 20);
    let plan = plan(Kind::Initial, vec![source("a", &served.uri, None)]);
    let whole = take(&plan).unwrap().stream.len();
    for room in [0, 100, 1 << 20, whole - 1] {
        let error = capture(&plan, Full(room), &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, CaptureError::Encode { .. }),
            "{room}: {error}"
        );
    }
    capture(&plan, Full(whole), &mut |_| {}).unwrap();
}
