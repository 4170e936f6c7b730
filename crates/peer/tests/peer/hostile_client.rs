//! Clients that mean no good, with and without a good certificate. After each the server
//! answers honest ones as before.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use lifeboat_peer::{Limits, RefusalCode, ServerEvent};

use crate::calls::{PRIMARY, REPLICA};
use crate::raw::{self, RawClient, SOON};
use crate::support::{
    PATIENCE, Party, Scripted, Served, caller, delta_place, failed, now, receipt, serve_with,
};

struct Siege {
    served: Served,
    primary: Party,
    host: Arc<Scripted>,
}

fn siege(limits: Limits) -> Siege {
    siege_of(Scripted::new(), limits)
}

fn siege_of(host: Arc<Scripted>, limits: Limits) -> Siege {
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let served = serve_with(&replica, host.clone(), limits);
    Siege {
        served,
        primary,
        host,
    }
}

impl Siege {
    fn client(&self) -> RawClient {
        raw::client(&self.served, &self.primary)
    }

    fn plain(&self) -> TcpStream {
        let stream = TcpStream::connect(self.served.server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The answer to one request, after which the connection is closed.
    fn ask(&self, request: &str) -> String {
        let mut client = self.client();
        client.exchange(request.as_bytes()).unwrap()
    }

    fn assert_alive(&self) {
        caller(&self.primary)
            .link(&self.served, REPLICA)
            .introduce()
            .unwrap();
    }
}

fn quick() -> Limits {
    Limits {
        handshake: SOON,
        header: SOON,
        stall: SOON,
        ..Limits::default()
    }
}

#[test]
fn garbage_instead_of_tls_is_closed() {
    let siege = siege(Limits::default());
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        &[0; 5000],
        &[0xff; 70000],
        b"\x16\x03\x01\x40\x00garbage that is no hello",
    ] {
        let mut stream = siege.plain();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"));
        assert!(matches!(
            siege.served.event(),
            ServerEvent::NoHandshake { .. }
        ));
    }
    siege.assert_alive();
}

#[test]
fn a_handshake_that_does_not_come_is_given_up() {
    let siege = siege(quick());
    let mut silent = siege.plain();
    let mut slow = siege.plain();
    slow.write_all(&[0x16, 3, 1]).unwrap();
    for stream in [&mut silent, &mut slow] {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(matches!(
            siege.served.event(),
            ServerEvent::NoHandshake { .. }
        ));
    }
    siege.assert_alive();
}

#[test]
fn one_address_cannot_take_all_handshakes() {
    let limits = Limits {
        handshakes_per_address: 3,
        ..Limits::default()
    };
    let siege = siege(limits);
    let silent: Vec<_> = (0..3).map(|_| siege.plain()).collect();
    let mut fourth = siege.plain();
    assert_eq!(fourth.read(&mut [0; 1]).unwrap_or(0), 0);
    assert!(matches!(
        siege.served.event(),
        ServerEvent::TurnedAway { peer: None, .. }
    ));
    drop(silent);
    for _ in 0..3 {
        assert!(matches!(
            siege.served.event(),
            ServerEvent::NoHandshake { .. }
        ));
    }
    siege.assert_alive();
}

#[test]
fn a_request_that_is_not_completed_is_given_up() {
    let siege = siege(quick());
    for beginning in ["G", "GET /peer/v1/introduction HTTP/1.1\r\nHost: a\r\nX: "] {
        let mut client = siege.client();
        client.send(beginning.as_bytes()).unwrap();
        let answer = client.read_to_close().unwrap();
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    siege.assert_alive();
}

#[test]
fn a_message_that_is_not_completed_is_given_up() {
    let siege = siege(quick());
    let answer =
        siege.ask("POST /peer/v1/guest-status HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn a_body_that_stalls_ends_the_host_s_reading() {
    let (outcome, reading) = std::sync::mpsc::channel();
    let outcome = std::sync::Mutex::new(outcome);
    let host = Scripted::on_delta(move |_, _, body| {
        let error = std::io::copy(body, &mut std::io::sink()).unwrap_err();
        outcome.lock().unwrap().send(error.kind()).unwrap();
        Err(failed(&error))
    });
    let siege = siege_of(host, quick());
    let mut client = siege.client();
    client.send(&put("Content-Length: 1000000")).unwrap();
    client.send(&[1; 5000]).unwrap();
    let answer = client.read_to_close().unwrap();
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert_eq!(
        reading.recv_timeout(PATIENCE).unwrap(),
        std::io::ErrorKind::TimedOut
    );
    siege.assert_alive();
}

#[test]
fn a_body_that_drips_is_one_that_stalls() {
    let siege = siege(quick());
    let mut client = siege.client();
    client.send(&put("Transfer-Encoding: chunked")).unwrap();
    // Drips, one at a time, until the server has had enough of it and says so.
    while !is_readable(&client) && client.send(b"1\r\nx\r\n").is_ok() {
        std::thread::sleep(SOON / 30);
    }
    let answer = client.read_to_close().unwrap();
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    siege.assert_alive();
}

fn is_readable(client: &RawClient) -> bool {
    client.0.sock.set_nonblocking(true).unwrap();
    let readable = client.0.sock.peek(&mut [0; 1]).is_ok();
    client.0.sock.set_nonblocking(false).unwrap();
    readable
}

/// The head of a PUT of a delta.
fn put(length: &str) -> Vec<u8> {
    let place = serde_json::to_string(&delta_place()).unwrap();
    format!("PUT /peer/v1/delta HTTP/1.1\r\nHost: a\r\nlifeboat-place: {place}\r\n{length}\r\n\r\n")
        .into_bytes()
}

#[test]
fn a_body_that_is_cut_is_no_end_of_file() {
    let (outcome, reading) = std::sync::mpsc::channel();
    let outcome = std::sync::Mutex::new(outcome);
    let host = Scripted::on_delta(move |_, place, body| {
        let result = std::io::copy(body, &mut std::io::sink());
        outcome.lock().unwrap().send(result.is_err()).unwrap();
        Ok(receipt(place))
    });
    let siege = siege_of(host, Limits::default());
    for length in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut client = siege.client();
        client.send(&put(length)).unwrap();
        client.send(b"3e8\r\n").unwrap();
        client.send(&[b'x'; 900]).unwrap();
        client.0.sock.shutdown(Shutdown::Both).unwrap();
        assert!(reading.recv_timeout(PATIENCE).unwrap(), "{length}");
    }
    siege.assert_alive();
}

#[test]
fn a_half_closed_connection_does_not_hold_the_host() {
    let (outcome, reading) = std::sync::mpsc::channel();
    let outcome = std::sync::Mutex::new(outcome);
    let host = Scripted::on_delta(move |_, place, body| {
        let result = std::io::copy(body, &mut std::io::sink());
        outcome.lock().unwrap().send(result.is_err()).unwrap();
        Ok(receipt(place))
    });
    let siege = siege_of(host, Limits::default());
    let mut client = siege.client();
    client.send(&put("Content-Length: 100000")).unwrap();
    client.send(&[1; 5000]).unwrap();
    client.0.conn.send_close_notify();
    client.0.flush().unwrap();
    client.0.sock.shutdown(Shutdown::Write).unwrap();
    assert!(reading.recv_timeout(PATIENCE).unwrap());
    siege.assert_alive();
}

#[test]
fn messages_that_are_too_long_are_refused_unread() {
    let siege = siege(Limits::default());
    let head = "POST /peer/v1/make-replica HTTP/1.1\r\nHost: a\r\n";
    let declared = format!("{head}Content-Length: {}\r\n\r\n", 1_u64 << 62);
    let answer = siege.ask(&declared);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let chunk = format!("{:x}\r\n{}\r\n", 70_000, "x".repeat(70_000));
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{}",
        chunk.repeat(4)
    );
    let answer = siege.ask(&chunked);
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("longer than"),
        "{answer}"
    );
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn heads_that_are_too_long_are_refused() {
    let siege = siege(Limits::default());
    let long_value = format!(
        "GET /peer/v1/introduction HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let many = format!(
        "GET /peer/v1/introduction HTTP/1.1\r\nHost: a\r\n{}\r\n",
        (0..60)
            .map(|at| format!("X{at}: 1\r\n"))
            .collect::<String>()
    );
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
    for request in [long_value, many, long_path] {
        let answer = siege.ask(&request);
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn a_place_that_is_missing_repeated_malformed_or_too_long_is_refused() {
    let siege = siege(Limits::default());
    let place = serde_json::to_string(&delta_place()).unwrap();
    for headers in [
        String::new(),
        format!("lifeboat-place: {place}\r\nlifeboat-place: {place}\r\n"),
        "lifeboat-place: {\r\n".to_owned(),
        "lifeboat-place: {\"relationship\": \"../../etc\"}\r\n".to_owned(),
        format!("lifeboat-place: {}{place}\r\n", " ".repeat(5000)).replace(":  ", ": {}"),
    ] {
        let answer = siege.ask(&format!(
            "PUT /peer/v1/delta HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: 0\r\n\r\n"
        ));
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn requests_that_are_no_calls_are_refused() {
    let siege = siege(Limits::default());
    for (request, status) in [
        ("GET / HTTP/1.1", 404),
        ("GET /peer/v1/introduction/ HTTP/1.1", 404),
        ("GET /peer/v1/../v1/introduction HTTP/1.1", 404),
        ("GET /../../etc/passwd HTTP/1.1", 404),
        ("GET /peer/v1/%69ntroduction HTTP/1.1", 404),
        ("GET /peer/v1/introduction?a=1 HTTP/1.1", 400),
        ("POST /peer/v1/introduction HTTP/1.1", 405),
        ("GET /peer/v1/remove HTTP/1.1", 405),
        ("DELETE /peer/v1/remove HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 404),
        ("GET /peer/v2/introduction HTTP/1.1", 501),
        ("CONNECT a:80 HTTP/1.1", 404),
    ] {
        let answer = siege.ask(&format!(
            "{request}\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        ));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
    }
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn malformed_messages_are_refused_without_harm() {
    let siege = siege(Limits::default());
    let deep = "[".repeat(100_000);
    for message in [
        "",
        "null",
        "{}",
        "[1]",
        "\u{0}",
        "{\"relationship\": 1}",
        "{\"relationship\": \"zz\"}",
        "{\"relationship\": \"a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1\", \"more\": 1}",
        "{\"relationship\": \"a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1\"} more",
        &deep,
    ] {
        let answer = siege.ask(&format!(
            "POST /peer/v1/guest-status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{message}",
            message.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let refusal: lifeboat_peer::Refusal = serde_json::from_str(body).unwrap();
        assert_eq!(refusal.code, RefusalCode::Invalid);
    }
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_refused() {
    let siege = siege(Limits::default());
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x10\r\n",
        "Transfer-Encoding: identity\r\n",
    ] {
        let answer = siege.ask(&format!(
            "POST /peer/v1/guest-status HTTP/1.1\r\nHost: a\r\n{headers}\r\nhello!"
        ));
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers}: {answer}");
    }
    assert!(siege.host.heard.lock().unwrap().is_empty());
    siege.assert_alive();
}

#[test]
fn a_peer_with_too_many_connections_is_told_so_and_others_are_served() {
    let limits = Limits {
        connections_per_peer: 2,
        ..Limits::default()
    };
    let replica = Party::with_authority(REPLICA);
    let primary = Party::joined(PRIMARY, &replica, now());
    let other = Party::joined("primary-2.example", &replica, now());
    let served = serve_with(&replica, Scripted::new(), limits);
    let request = b"GET /peer/v1/introduction HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = raw::client(&served, &primary);
        client.send(request).unwrap();
        assert!(client.answer().unwrap().starts_with("HTTP/1.1 200"));
        kept.push(client);
    }
    let answer = raw::client(&served, &primary).exchange(request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(matches!(
        served.event(),
        ServerEvent::TurnedAway { peer: Some(_), .. }
    ));
    caller(&other).link(&served, REPLICA).introduce().unwrap();
    drop(kept);
}

#[test]
fn many_connections_that_come_and_go_leave_nothing_behind() {
    let siege = siege(Limits::default());
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = siege.client();
        client
            .send(b"GET /peer/v1/introduction HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        clients.push(client);
    }
    for client in &mut clients {
        assert!(client.answer().unwrap().starts_with("HTTP/1.1 200"));
    }
    drop(clients);
    for _ in 0..200 {
        drop(siege.plain());
    }
    // Those that the server has not seen going yet have their places, and nobody gets one meanwhile.
    let caller = caller(&siege.primary);
    let is_alive = |_| caller.link(&siege.served, REPLICA).introduce().is_ok();
    assert!((0..1000).any(is_alive), "their places are never given back");
}
