//! A running interface on a unix socket, and requests of every kind.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lifeboat_rest::{Limits, Listener, UnixAccess, bind_unix, rest, serve};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::Fake;

/// The interface, until it is dropped.
pub struct Scene {
    pub fake: Arc<Fake>,
    pub socket: PathBuf,
    folder: TempDir,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

/// Who the tests run as.
pub fn own_access() -> UnixAccess {
    let folder = tempfile::tempdir().unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&folder.path().metadata().unwrap());
    UnixAccess {
        daemon_uid: owner,
        operators_gid: None,
    }
}

impl Scene {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("rest.sock");
        let access = own_access();
        let listener = bind_unix(&socket, access).unwrap();
        let fake = Arc::new(Fake::new());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(
            vec![Listener::Unix { listener, access }],
            rest(Arc::clone(&fake) as Arc<_>, limits),
            async move { drop(stopped.await) },
        ));
        Self {
            fake,
            socket,
            folder,
            stop: Some(stop),
            served,
        }
    }

    /// Stops the interface and waits for its end.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.served.await.unwrap();
        self.folder.close().unwrap();
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends a request on a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let io = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("host", "localhost");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body
            .map(|body| Bytes::from(body.to_string()))
            .unwrap_or_default();
        self.answer(request.body(Full::new(body)).unwrap()).await
    }

    pub async fn answer(&self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.send(request).await.into_parts();
        let header = |name: &str| {
            let value = head.headers.get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            location: header("location"),
            content_type: header("content-type"),
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None).await
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub location: Option<String>,
    pub content_type: Option<String>,
    pub text: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The problem that this must be, with this status.
    #[track_caller]
    pub fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(
            self.content_type.as_deref(),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        let mut names: Vec<&String> = problem.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(
            names,
            [
                "remedy",
                "return_code",
                "return_code_text",
                "status",
                "what"
            ]
        );
        assert!(
            problem["return_code"].as_u64().unwrap() >= 32_768,
            "{problem}"
        );
        problem
    }
}
