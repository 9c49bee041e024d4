//! The control protocol of the reference's daemons: JSON-RPC 1.0 over a Unix socket.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::de::IoRead;
use serde_json::{Deserializer, StreamDeserializer, Value, json};

/// Requests on the way at a time: enough to keep the daemon busy, few enough for the socket's buffers.
const WINDOW: usize = 16;

/// A connection. Commands that the daemon refuses are `Err` with its text.
pub(crate) struct Unixctl {
    out: UnixStream,
    replies: StreamDeserializer<'static, IoRead<BufReader<UnixStream>>, Value>,
}

impl Unixctl {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let out = UnixStream::connect(path)?;
        out.set_read_timeout(Some(Duration::from_secs(30)))?;
        out.set_write_timeout(Some(Duration::from_secs(30)))?;
        let replies = Deserializer::from_reader(BufReader::new(out.try_clone()?)).into_iter();
        Ok(Self { out, replies })
    }

    /// Runs one command.
    pub(crate) fn call(&mut self, method: &str, params: &[String]) -> Result<String, String> {
        self.send(method, params);
        self.receive()
    }

    /// Runs a command once with each of these parameters, several on the way at a time; the answers in the same order.
    pub(crate) fn call_each(&mut self, method: &str, params: &[Vec<String>]) -> Vec<Result<String, String>> {
        let mut answers = Vec::with_capacity(params.len());
        for window in params.chunks(WINDOW) {
            window.iter().for_each(|params| self.send(method, params));
            answers.extend(window.iter().map(|_| self.receive()));
        }
        answers
    }

    fn send(&mut self, method: &str, params: &[String]) {
        let request = json!({ "method": method, "params": params, "id": 0 });
        self.out.write_all(request.to_string().as_bytes()).unwrap();
    }

    fn receive(&mut self) -> Result<String, String> {
        let reply = self.replies.next().expect("the daemon closed the connection").unwrap();
        match &reply["error"] {
            Value::Null => Ok(reply["result"].as_str().unwrap_or_default().to_owned()),
            error => Err(error.as_str().unwrap_or_default().trim().to_owned()),
        }
    }
}
