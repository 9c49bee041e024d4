//! The control socket as clients see it, over a real socket.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vswitchd::unixctl::{Format, Registry, Reply, Responder, Server, call};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A server with a few commands, in a directory of its own.
struct Fixture {
    server: Server,
    path: PathBuf,
    registry: Arc<Registry>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctl");
        let registry = Registry::new("vswitchd (Sluice) 0.1.0");
        registry.register("echo", "ARG...", 1, usize::MAX, |args| Ok(format!("{args:?}")));
        registry.register("fail", "", 0, 1, |args| Err(format!("no {}", args.join(" "))));
        registry.register("panic", "", 0, 0, |_| panic!("on purpose"));
        registry.register("long", "BYTES", 1, 1, |args| Ok("x".repeat(args[0].parse().unwrap())));
        registry.register_hidden("hidden", 0, 0, |_| Ok(String::new()));
        registry.register_any("both", "", 0, 0, |request| match request.format {
            Format::Text => Ok(Reply::Text("a: 1\n".to_owned())),
            Format::Json => Ok(Reply::Json(json!({"a": 1}))),
        });
        let server = Server::bind(&path).unwrap().serve(Arc::clone(&registry)).unwrap();
        Fixture { server, path, registry, _directory: directory }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Client::new(stream)
    }

    /// The text of the result or the error, over a connection of its own, without its last newline.
    fn call(&self, command: &str, args: &[&str]) -> Result<String, String> {
        let text = |text: String| match text.strip_suffix('\n') {
            Some(text) => text.to_owned(),
            None if text.is_empty() => text,
            None => panic!("{text:?} has no newline"),
        };
        call(&self.path, command, args, TIMEOUT).unwrap().map(text).map_err(text)
    }
}

/// A connection; what was read too much waits in the reader.
struct Client(UnixStream, BufReader<UnixStream>);

impl Client {
    fn new(stream: UnixStream) -> Client {
        let reader = BufReader::new(stream.try_clone().unwrap());
        Client(stream, reader)
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// The next `n` replies.
    fn receive(&mut self, n: usize) -> Vec<Value> {
        serde_json::Deserializer::from_reader(&mut self.1).into_iter().take(n).map(Result::unwrap).collect()
    }

    fn receive_one(&mut self) -> Value {
        self.receive(1).remove(0)
    }

    /// Whatever comes until the server closes.
    fn receive_all(mut self) -> String {
        let mut all = String::new();
        self.1.read_to_string(&mut all).unwrap();
        all
    }
}

fn request(method: &str, params: &[&str], id: usize) -> String {
    json!({"method": method, "params": params, "id": id}).to_string()
}

#[test]
fn answers_are_those_of_the_field() {
    let fixture = Fixture::new();
    for (command, args, expected) in [
        ("version", &[][..], Ok("vswitchd (Sluice) 0.1.0")),
        ("echo", &["a", "b \n\"ü"], Ok(r#"["a", "b \n\"ü"]"#)),
        ("fail", &["way"], Err("no way")),
        ("echo", &[], Err(r#""echo" command requires at least 1 arguments"#)),
        ("fail", &["a", "b"], Err(r#""fail" command takes at most 1 arguments"#)),
        ("version", &["a"], Err(r#""version" command takes at most 0 arguments"#)),
        ("hidden", &[], Ok("")),
        (
            "nonsense",
            &[],
            Err(r#""nonsense" is not a valid command (use "list-commands" to see a list of valid commands)"#),
        ),
        ("panic", &[], Err(r#""panic" command failed by an internal error, see the daemon's log"#)),
    ] {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(fixture.call(command, args), expected, "{command} {args:?}");
    }
}

#[test]
fn the_list_of_commands_is_sorted_and_hides_the_hidden() {
    let fixture = Fixture::new();
    fixture.registry.register("upcall/show", "[dp]", 0, 1, |_| Ok(String::new()));
    let expected = "The available commands are:
  both                    
  echo                    ARG...
  fail                    
  help                    
  list-commands           
  long                    BYTES
  panic                   
  set-options             [--format text|json]
  upcall/show             [dp]
  version                 ";
    assert_eq!(fixture.call("list-commands", &[]), Ok(expected.to_owned()));
    assert_eq!(fixture.call("help", &[]), Ok(expected.to_owned()));
}

#[test]
fn a_connection_can_have_its_results_as_json() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    client.send(request("both", &[], 1));
    assert_eq!(client.receive_one()["result"], json!("a: 1\n"));
    for args in [&["--format", "json"][..], &["--format=JSON"]] {
        client.send(request("set-options", args, 2));
        let reply = client.receive_one();
        assert_eq!(reply["error"], Value::Null, "{args:?}: {reply}");
    }
    client.send(request("both", &[], 3));
    assert_eq!(client.receive_one()["result"], json!({"a": 1}));
    client.send(request("echo", &["x"], 4));
    assert_eq!(client.receive_one()["result"], json!({"reply-format": "plain", "reply": "[\"x\"]"}));
    client.send(request("list-commands", &[], 5));
    assert_eq!(client.receive_one()["result"]["echo"], json!("ARG..."));
    client.send(request("fail", &[], 6));
    assert_eq!(client.receive_one()["error"], json!("no \n"));
    // Another connection is as it was.
    assert_eq!(fixture.call("both", &[]), Ok("a: 1".to_owned()));
    for (args, error) in [
        (&["--format", "xml"][..], "option format has invalid value xml"),
        (&["--format"], "option '--format' requires an argument"),
        (&["--color"], "unrecognized option '--color'"),
    ] {
        assert_eq!(fixture.call("set-options", args), Err(error.to_owned()));
    }
}

#[test]
fn many_requests_on_one_connection_are_answered_in_order() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    let n = 1000;
    let requests: String = (0..n).map(|id| request("echo", &["x"], id)).collect();
    client.send(requests);
    let ids: Vec<u64> = client.receive(n).iter().map(|reply| reply["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..n as u64).collect::<Vec<_>>());
}

#[test]
fn a_request_may_come_byte_by_byte_and_the_next_one_with_its_end() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    for byte in request("echo", &["}{\\\""], 1).bytes() {
        client.send([byte]);
    }
    assert_eq!(client.receive_one()["result"], json!("[\"}{\\\\\\\"\"]\n"));
    let two = request("echo", &["a"], 2) + &request("echo", &["b"], 3);
    let (first, second) = two.split_at(two.len() - 10);
    client.send(first);
    assert_eq!(client.receive_one()["id"], json!(2));
    client.send(second);
    assert_eq!(client.receive_one()["id"], json!(3));
}

#[test]
fn a_client_that_stops_writing_still_gets_its_answers() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    client.send((0..50).map(|id| request("long", &["10000"], id)).collect::<String>());
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.receive(50).len(), 50);
    assert_eq!(client.receive_all(), "");
}

#[test]
fn what_is_not_a_request_gets_an_error_and_the_connection_ends() {
    let fixture = Fixture::new();
    for (bytes, error) in [
        ("hello\n", "a request must be a JSON object"),
        ("[]", "a request must be a JSON object"),
        ("{nonsense}", "request is not JSON: "),
        ("{\"method\":1}", "request is not JSON-RPC: \"method\" must be a string"),
        ("{\"method\":\"version\",\"params\":[]}", "request is not JSON-RPC: request must have \"id\""),
        ("{\"result\":\"x\",\"error\":null,\"id\":1}", "request is not JSON-RPC: request must have \"method\""),
    ] {
        let mut client = fixture.connect();
        client.send(request("version", &[], 1) + bytes);
        let text = client.receive_all();
        let replies: Vec<Value> =
            serde_json::Deserializer::from_str(&text).into_iter::<Value>().map(Result::unwrap).collect();
        assert_eq!(replies[0]["id"], json!(1), "{bytes}");
        assert!(replies[1]["error"].as_str().unwrap().starts_with(error), "{bytes}: {text}");
        assert_eq!(replies[1]["id"], Value::Null);
    }
    // An argument that is no string is an error, but the connection goes on.
    let mut client = fixture.connect();
    client.send(json!({"method": "echo", "params": [5], "id": "a"}).to_string());
    let reply = client.receive_one();
    assert_eq!(reply, json!({"id": "a", "result": null, "error": "\"echo\" command has non-string argument\n"}));
    client.send(request("version", &[], 1));
    assert_eq!(client.receive_one()["error"], Value::Null);
}

#[test]
fn a_request_without_end_is_cut_off() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    let chunk = vec![b'{'; 64 * 1024];
    let mut sent = 0;
    // The server closes; until then it takes what comes.
    while client.0.write_all(&chunk).is_ok() {
        sent += chunk.len();
        assert!(sent < 64 * 1024 * 1024, "the server takes everything");
    }
    assert!(fixture.call("version", &[]).is_ok());
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let fixture = Fixture::new();
    let mut slow = fixture.connect();
    let size = 8_000_000;
    slow.send(request("long", &[&size.to_string()], 1) + &request("version", &[], 2));
    let mut half = fixture.connect();
    half.send("{\"method\":");
    for _ in 0..20 {
        assert!(fixture.call("version", &[]).is_ok());
    }
    let replies = slow.receive(2);
    assert_eq!(replies[0]["result"].as_str().unwrap().len(), size + 1);
    assert_eq!(replies[1]["id"], json!(2));
}

#[test]
fn a_client_with_endless_requests_holds_up_nobody() {
    let fixture = Fixture::new();
    let mut busy = fixture.connect();
    let mut reader = busy.0.try_clone().unwrap();
    let drain = std::thread::spawn(move || {
        let mut sink = vec![0; 1 << 16];
        while reader.read(&mut sink).is_ok_and(|n| n > 0) {}
    });
    let flood = std::thread::spawn(move || {
        let many: String = (0..1000).map(|id| request("version", &[], id)).collect();
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            busy.send(&many);
        }
        let _ = busy.0.shutdown(Shutdown::Both);
    });
    for _ in 0..20 {
        let start = Instant::now();
        assert!(fixture.call("version", &[]).is_ok());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    flood.join().unwrap();
    drain.join().unwrap();
}

#[test]
fn more_clients_than_places_are_served_in_the_end() {
    let fixture = Fixture::new();
    let clients: Vec<Client> = (0..300).map(|_| fixture.connect()).collect();
    let last = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.call("version", &[]));
        std::thread::sleep(Duration::from_millis(50));
        drop(clients);
        waiting.join().unwrap()
    });
    assert!(last.is_ok());
}

#[test]
fn a_command_may_answer_later_while_others_go_on() {
    let fixture = Fixture::new();
    let (sender, waiting) = channel::<Responder>();
    let sender = Mutex::new(sender);
    fixture.registry.register_later("wait", "", 0, 0, move |_, responder| {
        sender.lock().unwrap().send(responder).unwrap();
    });
    let mut client = fixture.connect();
    client.send(request("wait", &[], 1) + &request("version", &[], 2));
    let responder = waiting.recv_timeout(TIMEOUT).unwrap();
    assert!(fixture.call("version", &[]).is_ok());
    responder.reply(Ok(Reply::Text("done".to_owned())));
    let replies = client.receive(2);
    assert_eq!((&replies[0]["result"], &replies[1]["id"]), (&json!("done\n"), &json!(2)));

    // One that is given up is answered too.
    client.send(request("wait", &[], 3));
    drop(waiting.recv_timeout(TIMEOUT).unwrap());
    assert_eq!(client.receive_one()["error"], json!("command was given up without a result\n"));

    // A client that went away meanwhile doesn't matter.
    client.send(request("wait", &[], 4));
    let responder = waiting.recv_timeout(TIMEOUT).unwrap();
    drop(client);
    responder.reply(Ok(Reply::Text("nobody hears".to_owned())));
    assert!(fixture.call("version", &[]).is_ok());
}

#[test]
fn answers_given_before_the_end_still_leave() {
    let fixture = Fixture::new();
    let (sender, waiting) = channel::<Responder>();
    let sender = Mutex::new(sender);
    fixture.registry.register_later("wait", "", 0, 0, move |_, responder| {
        sender.lock().unwrap().send(responder).unwrap();
    });
    let (mut first, mut second) = (fixture.connect(), fixture.connect());
    first.send(request("wait", &[], 1));
    let answered = waiting.recv_timeout(TIMEOUT).unwrap();
    second.send(request("wait", &[], 2));
    let unanswered = waiting.recv_timeout(TIMEOUT).unwrap();
    answered.reply(Ok(Reply::Text("bye".to_owned())));
    let path = fixture.path.clone();
    let start = Instant::now();
    drop(fixture.server);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(first.receive_one()["result"], json!("bye\n"));
    assert_eq!(second.receive_one()["error"], json!("the daemon exits\n"));
    unanswered.reply(Ok(Reply::Text("too late".to_owned())));
    assert!(!path.exists());
}

#[test]
fn clients_that_come_before_the_service_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ctl");
    let bound = Server::bind(&path).unwrap();
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(request("version", &[], 1).as_bytes()).unwrap();
    let _server = bound.serve(Registry::new("v")).unwrap();
    early.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(Client::new(early).receive_one()["result"], json!("v\n"));
}
