//! One way to tell people: its queue, and its attempts.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_rest::AlertCounters;
use tokio::sync::mpsc;

use super::mail::{Mail, MailError};
use super::notice::Alert;
use super::webhook::{Webhook, WebhookError};

/// How long is waited after each attempt that failed; the last attempt is the one after.
pub(super) const ATTEMPTS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];

/// How people are told.
#[derive(Debug)]
pub(super) enum Way {
    Webhook(Webhook),
    Mail(Mail),
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliverError {
    #[error("call the webhook")]
    Webhook(#[source] WebhookError),
    #[error("send mail")]
    Mail(#[source] MailError),
}

impl Way {
    const fn name(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Mail(_) => "mail",
        }
    }

    async fn send(&self, alert: &Arc<Alert>) -> Result<(), DeliverError> {
        match self {
            Self::Webhook(webhook) => webhook.send(alert).await.map_err(DeliverError::Webhook),
            Self::Mail(mail) => mail.send(alert).await.map_err(DeliverError::Mail),
        }
    }
}

/// Delivers what comes, one after the other, until nobody sends any more.
pub(super) async fn run(
    way: Way,
    mut waiting: mpsc::Receiver<Arc<Alert>>,
    counters: Arc<AlertCounters>,
    pauses: &[Duration],
) {
    while let Some(alert) = waiting.recv().await {
        deliver(&way, &alert, &counters, pauses).await;
    }
}

async fn deliver(way: &Way, alert: &Arc<Alert>, counters: &AlertCounters, pauses: &[Duration]) {
    let mut pauses = pauses.iter();
    loop {
        let error = match way.send(alert).await {
            Ok(()) => return counters.delivered(),
            Err(error) => with_causes(&error),
        };
        let Some(pause) = pauses.next() else {
            counters.failed();
            let (name, message) = (way.name(), &alert.message);
            tracing::error!("an alert is given up: {error} ({name}): {message}");
            return;
        };
        let seconds = pause.as_secs();
        tracing::warn!("tell an alert: {error}; again in {seconds} s");
        tokio::time::sleep(*pause).await;
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use lifeboat_model::{Timestamp, VmId};
    use lifeboat_service::api::Severity;

    use super::super::notice::AlertKind;
    use super::*;
    use crate::daemon::config::{MailConfig, MailTls, WebhookConfig};

    fn alert() -> Arc<Alert> {
        Arc::new(Alert {
            kind: AlertKind::SplitBrain,
            degree: "",
            severity: Severity::Error,
            vm: Some(VmId::from_bytes([1; 16])),
            vm_name: Some("web1".to_owned()),
            at: Timestamp::from_micros(1_795_608_000_000_000),
            message: "web1: split brain\r\nBcc: somebody@example.com".to_owned(),
            remedy: "see the runbook".to_owned(),
        })
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// A server that answers one request after the other with these statuses.
    fn http_server(statuses: &'static [u16]) -> (SocketAddr, JoinHandle<Vec<(String, String)>>) {
        let (listener, address) = listener();
        let served = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().unwrap();
                seen.push(read_request(&stream));
                write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
            seen
        });
        (address, served)
    }

    fn read_request(stream: &TcpStream) -> (String, String) {
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&lower);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn webhook(address: SocketAddr) -> Way {
        let config = WebhookConfig {
            url: format!("http://{address}/alerts?team=ops"),
            ca_file: "/nonexistent".into(),
            token_file: None,
        };
        Way::Webhook(Webhook::new(&config, "alpha").unwrap())
    }

    #[tokio::test]
    async fn a_webhook_gets_the_alert_as_json() {
        let (address, served) = http_server(&[204]);
        let counters = AlertCounters::default();
        deliver(&webhook(address), &alert(), &counters, &[]).await;
        assert_eq!(counters.counts(), [1, 0, 0]);
        let seen = served.join().unwrap();
        let (head, body) = &seen[0];
        assert!(head.starts_with("post /alerts?team=ops http/1.1"), "{head}");
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains(&format!("host: {address}")), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["kind"], "split_brain");
        assert_eq!(json["host"], "alpha");
        assert_eq!(json["severity"], "error");
        assert_eq!(json["vm"], "web1");
        assert_eq!(json["at"], "2026-11-25T12:00:00Z");
        assert_eq!(json["remedy"], "see the runbook");
    }

    #[tokio::test]
    async fn a_webhook_that_fails_is_asked_again_and_then_given_up() {
        let pauses = [Duration::from_millis(1); 2];
        let (address, served) = http_server(&[500, 302, 200]);
        let counters = AlertCounters::default();
        deliver(&webhook(address), &alert(), &counters, &pauses).await;
        assert_eq!(counters.counts(), [1, 0, 0]);
        assert_eq!(served.join().unwrap().len(), 3);
        let (address, served) = http_server(&[500, 500, 500]);
        deliver(&webhook(address), &alert(), &counters, &pauses).await;
        assert_eq!(counters.counts(), [1, 1, 0]);
        assert_eq!(served.join().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure_and_no_panic() {
        let (listener, address) = listener();
        drop(listener);
        let counters = AlertCounters::default();
        deliver(&webhook(address), &alert(), &counters, &[]).await;
        assert_eq!(counters.counts(), [0, 1, 0]);
    }

    /// A mail server for one message; answers every line with success.
    fn smtp_server() -> (SocketAddr, JoinHandle<Vec<String>>) {
        let (listener, address) = listener();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = Vec::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            stream.write_all(b"220 test\r\n").unwrap();
            let mut in_message = false;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 {
                    return lines;
                }
                let line = line.trim_end().to_owned();
                let answer: &[u8] = match line.as_str() {
                    "." if in_message => {
                        in_message = false;
                        b"250 kept\r\n"
                    }
                    _ if in_message => b"",
                    "DATA" => {
                        in_message = true;
                        b"354 go on\r\n"
                    }
                    "QUIT" => b"221 bye\r\n",
                    _ => b"250 fine\r\n",
                };
                stream.write_all(answer).unwrap();
                lines.push(line);
            }
        });
        (address, served)
    }

    #[tokio::test]
    async fn mail_has_everybody_and_no_header_that_a_message_smuggles_in() {
        let (address, served) = smtp_server();
        let config = MailConfig {
            server: address.ip().to_string(),
            port: address.port(),
            tls: MailTls::None,
            ca_file: "/nonexistent".into(),
            from: "Lifeboat <lifeboat@example.com>".to_owned(),
            to: vec!["one@example.com".to_owned(), "two@example.com".to_owned()],
            user: None,
            password_file: None,
        };
        let way = Way::Mail(Mail::new(&config, "alpha").unwrap());
        let counters = AlertCounters::default();
        deliver(&way, &alert(), &counters, &[]).await;
        assert_eq!(counters.counts(), [1, 0, 0]);
        drop(way);
        let lines = served.join().unwrap();
        for recipient in ["one", "two"] {
            let line = format!("RCPT TO:<{recipient}@example.com>");
            assert!(lines.contains(&line), "{lines:?}");
        }
        assert!(lines.iter().any(|line| line.starts_with("Subject: alpha:")));
        let head = lines.iter().take_while(|line| !line.is_empty());
        for line in head {
            assert!(!line.starts_with("Bcc"), "{line}");
        }
    }
}
