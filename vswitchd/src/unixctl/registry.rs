//! The commands, and how one is carried out.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use mio::Waker;
use parking_lot::RwLock;
use serde_json::{Value, json};

use super::server::Message;
use super::wire::Call;

/// How a connection wants its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As text.
    #[default]
    Text,
    /// As JSON values.
    Json,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Text, for whichever format. A client gets it with a newline at the end, whether it is here or not.
    Text(String),
    /// A JSON value; only where the request asks for [`Format::Json`].
    Json(Value),
}

/// What a command is asked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its arguments, as many as were registered.
    pub args: &'a [String],
    /// How the result should be.
    pub format: Format,
}

/// The obligation to answer a request. If it is dropped, the client learns that the command was given up.
#[derive(Debug)]
pub struct Responder {
    connection: usize,
    server: Option<(Sender<Message>, Arc<Waker>)>,
}

/// Who can be asked for what.
pub struct Registry(RwLock<BTreeMap<String, Arc<Command>>>);

struct Command {
    /// What its arguments look like; `None` hides it from lists.
    usage: Option<String>,
    min_args: usize,
    max_args: usize,
    handler: Handler,
}

type Now = dyn Fn(Request<'_>) -> Result<Reply, String> + Send + Sync;
type Later = dyn Fn(Request<'_>, Responder) + Send + Sync;

enum Handler {
    Now(Box<Now>),
    Later(Box<Later>),
    /// `set-options`, which is about the connection itself.
    SetFormat,
}

/// What became of a request.
pub(super) enum Outcome {
    Done(Result<Reply, String>),
    /// The responder went with the command.
    Pending,
    /// The connection changes its format.
    Format(Format),
}

impl Registry {
    /// A registry with the commands that every daemon has: `list-commands`, `help`, `version`, `set-options`.
    /// `version` is the answer to the third.
    pub fn new(version: impl Into<String>) -> Arc<Registry> {
        let registry = Arc::new(Registry(RwLock::default()));
        for name in ["list-commands", "help"] {
            let all = Arc::downgrade(&registry);
            registry.register_any(name, "", 0, 0, move |request| {
                Ok(all.upgrade().map_or(Reply::Text(String::new()), |all| all.list(request.format)))
            });
        }
        let version = version.into();
        registry.register("version", "", 0, 0, move |_| Ok(version.clone()));
        registry.insert("set-options", Some("[--format text|json]"), 1, 2, Handler::SetFormat);
        registry
    }

    /// Names and usages of the commands whose name begins so, in their order.
    pub(crate) fn usages(&self, prefix: &str) -> Vec<(String, String)> {
        let commands = self.0.read();
        let shown = commands.iter().filter(|(name, _)| name.starts_with(prefix));
        shown.filter_map(|(name, command)| Some((name.clone(), command.usage.clone()?))).collect()
    }

    /// Registers the command `name`. `usage` shows in lists what its arguments look like; it takes `min_args` to
    /// `max_args` of them (`usize::MAX` is any number). `handler` gets the arguments on the server's thread and gives
    /// the text of the result or of the error; others wait meanwhile. A second registration of a name replaces the
    /// first.
    pub fn register(
        &self,
        name: &str,
        usage: &str,
        min_args: usize,
        max_args: usize,
        handler: impl Fn(&[String]) -> Result<String, String> + Send + Sync + 'static,
    ) {
        self.register_any(name, usage, min_args, max_args, move |request| handler(request.args).map(Reply::Text));
    }

    /// As [`register`](Registry::register), for a command that knows both formats.
    pub fn register_any(
        &self,
        name: &str,
        usage: &str,
        min_args: usize,
        max_args: usize,
        handler: impl Fn(Request<'_>) -> Result<Reply, String> + Send + Sync + 'static,
    ) {
        self.insert(name, Some(usage), min_args, max_args, Handler::Now(Box::new(handler)));
    }

    /// As [`register`](Registry::register), for a command that answers when it has the answer, from any thread. Its
    /// connection waits, others don't.
    pub fn register_later(
        &self,
        name: &str,
        usage: &str,
        min_args: usize,
        max_args: usize,
        handler: impl Fn(Request<'_>, Responder) + Send + Sync + 'static,
    ) {
        self.insert(name, Some(usage), min_args, max_args, Handler::Later(Box::new(handler)));
    }

    /// As [`register`](Registry::register), for a command that no list shows.
    pub fn register_hidden(
        &self,
        name: &str,
        min_args: usize,
        max_args: usize,
        handler: impl Fn(&[String]) -> Result<String, String> + Send + Sync + 'static,
    ) {
        let handler = Handler::Now(Box::new(move |request| handler(request.args).map(Reply::Text)));
        self.insert(name, None, min_args, max_args, handler);
    }

    fn insert(&self, name: &str, usage: Option<&str>, min_args: usize, max_args: usize, handler: Handler) {
        let command = Command { usage: usage.map(str::to_owned), min_args, max_args, handler };
        self.0.write().insert(name.to_owned(), Arc::new(command));
    }

    fn list(&self, format: Format) -> Reply {
        let commands = self.0.read();
        let shown = commands.iter().filter_map(|(name, command)| Some((name, command.usage.as_ref()?)));
        match format {
            Format::Json => Reply::Json(shown.map(|(name, usage)| (name.clone(), json!(usage))).collect()),
            Format::Text => {
                let lines = shown.map(|(name, usage)| format!("  {name:<23} {usage}\n"));
                Reply::Text(format!("The available commands are:\n{}", lines.collect::<String>()))
            }
        }
    }

    /// Carries out a request. `responder` makes the responder for a command that answers later.
    pub(super) fn carry_out(&self, call: &Call, format: Format, responder: impl FnOnce() -> Responder) -> Outcome {
        self.start(call, format, responder).unwrap_or_else(|error| Outcome::Done(Err(error)))
    }

    fn start(&self, call: &Call, format: Format, responder: impl FnOnce() -> Responder) -> Result<Outcome, String> {
        let name = &call.method;
        // Not under the lock: a command may register others.
        let command = self.0.read().get(name).cloned();
        let command = command.ok_or_else(|| {
            format!("\"{name}\" is not a valid command (use \"list-commands\" to see a list of valid commands)")
        })?;
        if call.params.len() < command.min_args {
            return Err(format!("\"{name}\" command requires at least {} arguments", command.min_args));
        }
        if call.params.len() > command.max_args {
            return Err(format!("\"{name}\" command takes at most {} arguments", command.max_args));
        }
        let args: Option<Vec<String>> = call.params.iter().map(|p| p.as_str().map(str::to_owned)).collect();
        let args = args.ok_or_else(|| format!("\"{name}\" command has non-string argument"))?;
        let request = Request { args: &args, format };
        match &command.handler {
            Handler::Now(handler) => {
                let result = contain(name, || handler(request));
                Ok(Outcome::Done(result.unwrap_or_else(|| Err(format!("\"{name}\" command {INTERNAL}")))))
            }
            Handler::Later(handler) => {
                // If it panics, its responder answers while it is dropped.
                let responder = responder();
                contain(name, || handler(request, responder));
                Ok(Outcome::Pending)
            }
            Handler::SetFormat => parse_format(request.args).map(Outcome::Format),
        }
    }
}

const INTERNAL: &str = "failed by an internal error, see the daemon's log";

/// Runs a command so that, if it panics, it takes neither the server nor its client with it.
fn contain<T>(name: &str, command: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(command));
    if result.is_err() {
        tracing::error!("command \"{name}\" failed by an internal error");
    }
    result.ok()
}

/// The format that `set-options` asks for.
fn parse_format(args: &[String]) -> Result<Format, String> {
    let format = match args {
        [option, value] if option == "--format" => value.as_str(),
        [option] => option.strip_prefix("--format=").ok_or_else(|| match option.as_str() {
            "--format" => "option '--format' requires an argument".to_owned(),
            other => format!("unrecognized option '{other}'"),
        })?,
        _ => return Err(format!("unrecognized option '{}'", args.first().map_or("", String::as_str))),
    };
    match format.to_ascii_lowercase().as_str() {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(format!("option format has invalid value {format}")),
    }
}

impl Reply {
    /// The result as it goes to a client that asked for `format`.
    pub(super) fn into_value(self, format: Format) -> Value {
        match (self, format) {
            (Reply::Text(text), Format::Text) => Value::String(with_newline(text)),
            (Reply::Text(text), Format::Json) => json!({"reply-format": "plain", "reply": text}),
            (Reply::Json(value), Format::Json) => value,
            (Reply::Json(value), Format::Text) => Value::String(with_newline(value.to_string())),
        }
    }
}

/// Older clients print what they get as it is, newer ones end the line where it isn't ended: so text that is not empty
/// ends with a newline.
pub(super) fn with_newline(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

impl From<String> for Reply {
    fn from(text: String) -> Reply {
        Reply::Text(text)
    }
}

impl Responder {
    pub(super) fn new(connection: usize, server: Sender<Message>, waker: Arc<Waker>) -> Responder {
        Responder { connection, server: Some((server, waker)) }
    }

    /// Answers. A client that is gone meanwhile doesn't matter.
    pub fn reply(mut self, result: Result<Reply, String>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<Reply, String>) {
        if let Some((server, waker)) = self.server.take()
            && server.send(Message::Reply { connection: self.connection, result }).is_ok()
        {
            // A waker fails only if the server's poll is gone, and then there is nobody to wake.
            let _ = waker.wake();
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.send(Err("command was given up without a result".to_owned()));
    }
}
