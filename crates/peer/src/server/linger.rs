//! Closing a connection so that the peer hears the last word.
//!
//! A socket that is closed with unread bytes resets the connection, and the peer may lose
//! the answer or the alert that was on its way. So the sending side is shut down first, and
//! what the peer still sends is read and thrown away for a bounded while.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const LONGEST: Duration = Duration::from_secs(3);
const MOST: usize = 16 << 20;

pub(crate) async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let _ = tokio::time::timeout(LONGEST, async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut thrown_away = 0;
        let mut buffer = vec![0; 16 << 10];
        while thrown_away < MOST {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => thrown_away += read,
            }
        }
    })
    .await;
}
