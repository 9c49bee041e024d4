//! Requests and replies as bytes.
//!
//! Requests follow each other without a separator: a request ends where its JSON object closes. [`Framer`] finds that
//! place while bytes trickle in, looking at each byte once, and knows nothing of JSON but strings and brackets; whether
//! what it cut out is JSON, the parser says.

use serde_json::{Value, json};

/// The most bytes of a request. The longest that make sense carry a whole 64 KB packet as hexadecimal digits.
pub(crate) const REQUEST_MAX: usize = 1024 * 1024;

/// Why a stream of bytes can't be a stream of requests. After it nothing that follows can be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a request must be a JSON object")]
    NotAnObject,
    #[error("message is longer than {0} bytes")]
    TooLong(usize),
    #[error("request is not JSON: {0}")]
    NotJson(String),
    #[error("request is not JSON-RPC: {0}")]
    NotRpc(&'static str),
}

/// Cuts a stream of bytes into JSON objects.
pub(crate) struct Framer {
    bytes: Vec<u8>,
    /// The most bytes of an object.
    max: usize,
    /// How many of `bytes` were looked at.
    seen: usize,
    /// How many brackets are open there.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// A framer of objects of at most `max` bytes.
    pub(crate) fn new(max: usize) -> Framer {
        Framer { bytes: Vec::new(), max, seen: 0, depth: 0, in_string: false, escaped: false }
    }

    /// Appends what was received.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Cuts off the next whole object; `None` if more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        if self.depth == 0 {
            let blank = self.bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.bytes.drain(..blank);
            self.seen = 0;
        }
        while let Some(&byte) = self.bytes.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.in_string => match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                },
                b'{' | b'[' if self.depth > 0 || byte == b'{' => self.depth += 1,
                _ if self.depth == 0 => return Err(WireError::NotAnObject),
                b'"' => self.in_string = true,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let rest = self.bytes.split_off(self.seen);
                        self.seen = 0;
                        return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
                    }
                }
                _ => {}
            }
            if self.seen > self.max {
                return Err(WireError::TooLong(self.max));
            }
        }
        Ok(None)
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// Strings, if the client is well-behaved.
    pub(crate) params: Vec<Value>,
    /// Whatever the client wants to have back.
    pub(crate) id: Value,
}

impl Call {
    /// Reads a request.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Call, WireError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| WireError::NotJson(error.to_string()))?;
        let Value::Object(mut members) = value else { return Err(WireError::NotAnObject) };
        let mut take = |name: &str| members.remove(name).filter(|value| !value.is_null());
        let method = match take("method") {
            Some(Value::String(method)) => method,
            Some(_) => return Err(WireError::NotRpc("\"method\" must be a string")),
            None => return Err(WireError::NotRpc("request must have \"method\"")),
        };
        let params = match take("params") {
            Some(Value::Array(params)) => params,
            Some(_) => return Err(WireError::NotRpc("\"params\" must be an array")),
            None => return Err(WireError::NotRpc("request must have \"params\"")),
        };
        let id = take("id").ok_or(WireError::NotRpc("request must have \"id\""))?;
        Ok(Call { method, params, id })
    }
}

/// The bytes of the reply to request `id`.
pub(crate) fn reply(id: &Value, result: Result<Value, String>) -> Vec<u8> {
    let reply = match result {
        Ok(result) => json!({"id": id, "result": result, "error": null}),
        Err(error) => json!({"id": id, "result": null, "error": error}),
    };
    reply.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All objects in `bytes` given in chunks of `chunk`, and how it ended.
    fn frames(bytes: &[u8], chunk: usize) -> (Vec<String>, Result<(), WireError>) {
        let mut framer = Framer::new(REQUEST_MAX);
        let mut found = Vec::new();
        for chunk in bytes.chunks(chunk) {
            framer.push(chunk);
            loop {
                match framer.next() {
                    Ok(Some(frame)) => found.push(String::from_utf8_lossy(&frame).into_owned()),
                    Ok(None) => break,
                    Err(error) => return (found, Err(error)),
                }
            }
        }
        (found, Ok(()))
    }

    #[test]
    fn objects_are_cut_out_wherever_the_bytes_were_split() {
        let text = r#" {"a":"}\"{\\"} {"b":[1,{"c":[]}]}{}
            {"open":1"#;
        let expected = [r#"{"a":"}\"{\\"}"#, r#"{"b":[1,{"c":[]}]}"#, "{}"];
        for chunk in 1..=text.len() {
            let (found, end) = frames(text.as_bytes(), chunk);
            assert_eq!((found.as_slice(), end), (&expected.map(str::to_owned)[..], Ok(())), "chunks of {chunk}");
        }
    }

    #[test]
    fn what_cannot_begin_an_object_is_refused_at_once() {
        for text in ["x", "[1]", "\"a\"", "}", "{} 5", "\0"] {
            assert_eq!(frames(text.as_bytes(), 1).1, Err(WireError::NotAnObject), "{text:?}");
        }
    }

    #[test]
    fn a_request_without_end_is_refused() {
        let endless = vec![b'{'; REQUEST_MAX + 2];
        assert_eq!(frames(&endless, 4096).1, Err(WireError::TooLong(REQUEST_MAX)));
        let mut endless = vec![b'a'; REQUEST_MAX + 2];
        endless[..2].copy_from_slice(b"{\"");
        assert_eq!(frames(&endless, 4096).1, Err(WireError::TooLong(REQUEST_MAX)));
    }

    #[test]
    fn a_request_is_read_or_refused_with_its_reason() {
        let call = Call::parse(br#"{"method":"m","params":["a"],"id":7,"extra":null}"#).unwrap();
        assert_eq!(call, Call { method: "m".to_owned(), params: vec![json!("a")], id: json!(7) });
        let rpc = |reason| WireError::NotRpc(reason);
        for (text, error) in [
            (r#"{"params":[],"id":1}"#, rpc("request must have \"method\"")),
            (r#"{"method":1,"params":[],"id":1}"#, rpc("\"method\" must be a string")),
            (r#"{"method":"m","id":1}"#, rpc("request must have \"params\"")),
            (r#"{"method":"m","params":{},"id":1}"#, rpc("\"params\" must be an array")),
            (r#"{"method":"m","params":[]}"#, rpc("request must have \"id\"")),
            (r#"{"method":"m","params":[],"id":null}"#, rpc("request must have \"id\"")),
        ] {
            assert_eq!(Call::parse(text.as_bytes()), Err(error), "{text}");
        }
        for text in [&b"{]}"[..], b"{\"a\xff\":1}", b"{1}"] {
            assert!(matches!(Call::parse(text), Err(WireError::NotJson(_))), "{text:?}");
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let deep = [b"{\"a\":".as_slice(), &deep, b"}"].concat();
        assert!(matches!(Call::parse(&deep), Err(WireError::NotJson(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(prop_oneof![
            any::<u8>(), Just(b'{'), Just(b'}'), Just(b'"'), Just(b'\\'), Just(b'['), Just(b']')], 0..200),
            chunk in 1..20usize)
        {
            let (found, _) = frames(&bytes, chunk);
            for frame in found {
                let _ = Call::parse(frame.as_bytes());
            }
        }

        #[test]
        fn what_the_parser_writes_the_framer_finds(text in ".*", number in any::<i64>()) {
            let value = json!({"method": text, "params": [{"n": number}, [text]]}).to_string();
            let (found, end) = frames(format!("{value}\n{value}").as_bytes(), 7);
            prop_assert_eq!(found, vec![value.clone(), value]);
            prop_assert_eq!(end, Ok(()));
        }
    }
}
