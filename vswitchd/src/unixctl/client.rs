//! The client's side: one command, one answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::socket::ShortPath;
use super::wire::Framer;

/// Why there is no answer. The daemon's "no" is an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody listens, or the connection broke, or the time is over.
    #[error("{path}: {source}", path = .path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// What came is not an answer.
    #[error("{path}: unexpected answer: {reason}", path = .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Asks the daemon at `path` to carry out `command`, and waits up to `timeout` for the text of its result, or of its
/// error. Either ends with a newline, or is empty.
///
/// # Errors
/// If there is no answer.
pub fn call(path: &Path, command: &str, args: &[&str], timeout: Duration) -> Result<Result<String, String>, CallError> {
    let connection = |source| CallError::Connection { path: path.to_owned(), source };
    let answer = exchange(path, command, args, timeout).map_err(connection)?;
    let unexpected = |reason: String| CallError::Answer { path: path.to_owned(), reason };
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| unexpected(error.to_string()))?;
    match (answer.get("result"), answer.get("error")) {
        (Some(Value::String(result)), None | Some(Value::Null)) => Ok(Ok(result.clone())),
        (None | Some(Value::Null), Some(Value::String(error))) => Ok(Err(error.clone())),
        _ => Err(unexpected(answer.to_string())),
    }
}

fn exchange(path: &Path, command: &str, args: &[&str], timeout: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + timeout;
    let mut stream = UnixStream::connect(ShortPath::of(path)?.path)?;
    let request = json!({"method": command, "params": args, "id": 0}).to_string();
    stream.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    stream.write_all(request.as_bytes())?;
    let mut framer = Framer::new(usize::MAX);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => framer.push(chunk.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if let Some(answer) = framer.next().map_err(|error| io::Error::other(error.to_string()))? {
            return Ok(answer);
        }
    }
}
