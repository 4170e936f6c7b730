//! Servers with a good certificate that answer what no honest one would.

use std::io::Write;

use lifeboat_peer::{LinkError, Links, Patience, RefusalCode};

use crate::calls::{PRIMARY, REPLICA, digest_query};
use crate::raw::{self, SOON};
use crate::support::{Party, caller_with, delta_place, now, peer_address, relationship};

/// What a caller sees of a server that sends `answer` to each request and closes.
fn seen(answer: &str) -> LinkError {
    seen_with(
        answer.to_owned().into_bytes(),
        Patience::default(),
        |link| link.guest_status(relationship()).map(|_| ()),
    )
}

fn seen_with(
    answer: Vec<u8>,
    patience: Patience,
    call: impl Fn(&dyn lifeboat_peer::Link) -> Result<(), LinkError>,
) -> LinkError {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let address = raw::server(&replica, move |stream| {
        raw::head(stream);
        let _ = stream.write_all(&answer);
        let _ = stream.flush();
        stream.conn.send_close_notify();
        let _ = stream.flush();
        // What the caller still sends is read, so that it sees the answer.
        raw::head(stream);
    });
    let caller = caller_with(&primary, patience);
    let link = caller
        .links
        .to(&peer_address(address), Some(REPLICA))
        .unwrap();
    call(link.as_ref()).unwrap_err()
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn why(error: LinkError) -> String {
    match error {
        LinkError::Protocol { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_json_is_no_answer() {
    for body in [
        "",
        "{}",
        "null",
        "[]",
        "{\"running\": true}",
        "\u{7f}\u{0}",
        &"[".repeat(100_000),
    ] {
        assert!(
            why(seen(&ok(body))).contains("answer is not one"),
            "{body:.20}"
        );
    }
    let more = "{\"running\": true, \"unsent_bytes\": 1, \"more\": 1}";
    assert!(why(seen(&ok(more))).contains("more"));
}

#[test]
fn an_answer_longer_than_the_bound_is_not_read() {
    let declared = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        u64::MAX - 5
    );
    assert!(why(seen(&declared)).contains("longer"));
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    let endless = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        chunk.repeat(18)
    );
    assert!(why(seen(&endless)).contains("longer"));
}

#[test]
fn digests_of_the_wrong_length_are_no_answer() {
    for length in [0, 31, 33, 1000] {
        let error = seen_with(
            ok(&"x".repeat(length)).into_bytes(),
            Patience::default(),
            |link| link.digests(digest_query()).map(|_| ()),
        );
        let why = why(error);
        assert!(
            why.contains("instead of 32") || why.contains("longer than 32"),
            "{why}"
        );
    }
}

#[test]
fn an_answer_where_none_belongs_is_refused() {
    let error = seen_with(ok("{}").into_bytes(), Patience::default(), |link| {
        link.remove(lifeboat_peer::Removal {
            relationship: relationship(),
        })
    });
    assert!(why(error).contains("204"));
}

#[test]
fn a_refusal_without_reasons_is_none() {
    for answer in [
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops",
        "HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 409 Conflict\r\nContent-Length: 32\r\n\r\n{\"code\": \"new\", \"message\": \"no\"} ",
    ] {
        assert!(why(seen(answer)).contains("without saying why"), "{answer}");
    }
}

#[test]
fn a_refusal_arrives_as_one_whatever_its_status_is() {
    let body = "{\"code\": \"full\", \"message\": \"no room\"}";
    let error = seen(&format!(
        "HTTP/1.1 418 No\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(matches!(error, LinkError::Refused(refusal) if refusal.code == RefusalCode::Full));
}

#[test]
fn what_is_no_http_is_no_answer() {
    for answer in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
    ] {
        assert!(
            matches!(seen(answer), LinkError::Protocol { .. }),
            "{answer}"
        );
    }
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 << 20));
    assert!(matches!(seen(&long), LinkError::Protocol { .. }));
}

#[test]
fn a_connection_that_ends_early_is_an_interruption() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ] {
        assert!(
            matches!(seen(answer), LinkError::Interrupted { .. }),
            "{answer}"
        );
    }
}

#[test]
fn informational_answers_without_end_do_not_last_for_ever() {
    let patience = Patience {
        answer: SOON,
        ..Patience::default()
    };
    let answer = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000).into_bytes();
    let error = seen_with(answer, patience, |link| {
        link.guest_status(relationship()).map(|_| ())
    });
    assert!(matches!(
        error,
        LinkError::Interrupted { .. } | LinkError::TimedOut { .. }
    ));
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let address = raw::server(&replica, |stream| {
        raw::head(stream);
        raw::head(stream);
    });
    let patience = Patience {
        answer: SOON,
        durable: SOON,
        stall: SOON,
        ..Patience::default()
    };
    let caller = caller_with(&primary, patience);
    let link = caller
        .links
        .to(&peer_address(address), Some(REPLICA))
        .unwrap();
    assert!(matches!(link.introduce(), Err(LinkError::TimedOut { .. })));
    let put = link.put_delta(delta_place(), &mut [1; 10].as_slice());
    assert!(matches!(put, Err(LinkError::TimedOut { .. })));
}

#[test]
fn a_server_that_takes_nothing_more_of_a_body_is_given_up() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let address = raw::server(&replica, move |stream| {
        raw::head(stream);
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        stream.flush().unwrap();
        let _ = wait.recv();
    });
    let patience = Patience {
        stall: SOON,
        ..Patience::default()
    };
    let caller = caller_with(&primary, patience);
    let link = caller
        .links
        .to(&peer_address(address), Some(REPLICA))
        .unwrap();
    let put = link.put_delta(delta_place(), &mut std::io::repeat(1));
    assert!(matches!(put, Err(LinkError::TimedOut { .. })), "{put:?}");
    drop(done);
}

#[test]
fn no_tls_at_the_other_end_is_no_trust_and_no_hang() {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
            raw::head(&mut stream);
        }
    });
    let caller = caller_with(&primary, Patience::default());
    let link = caller
        .links
        .to(&peer_address(address), Some(REPLICA))
        .unwrap();
    assert!(matches!(
        link.introduce(),
        Err(LinkError::Unreachable { .. })
    ));
}
