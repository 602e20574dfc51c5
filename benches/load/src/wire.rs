//! As much of HTTP/2 as a load of unary gRPC calls needs: bytes out, bytes in,
//! no sockets.
//!
//! A general client costs more CPU per call than the server under test, and
//! then it is the client that is measured. Here a call is a few copies. Headers
//! are sent as usual clients send them: once in full, and then as references
//! into the table that the server keeps.

use std::collections::HashSet;

use anyhow::{Context, bail, ensure};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const FRAME_HEAD: usize = 9;
/// What a connection may send before it is allowed more.
const FIRST_WINDOW: i64 = 65_535;
/// No server sends us more than this in a run.
const OUR_WINDOW: u32 = (1 << 31) - 1;
/// The largest message that fits into one frame of any server.
const MOST: usize = 16_384;

/// Makes the bytes of one connection's calls.
#[derive(Debug)]
pub struct Requests {
    authority: String,
    path: String,
    next: u32,
    /// How much more may be sent before the server must allow more.
    pub window: i64,
}

/// What a server has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A call has ended: with an answer, or with an error only.
    Ended { stream: u32, answered: bool },
    /// So much more may be sent.
    Allowed(i64),
    /// It wants to be told that we have its settings.
    Settings,
    /// It wants this back.
    Ping([u8; 8]),
}

/// Reads the bytes that a server sends on one connection.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    /// Streams that have had a message.
    answered: HashSet<u32>,
    /// What the last stream that brought a message has brought.
    body: Vec<u8>,
    body_of: u32,
    /// Streams that have ended. A server may reset one that it has answered, if
    /// it had not read all of the call by then.
    ended: HashSet<u32>,
}

impl Requests {
    /// For calls of one method; `path` is `/package.Service/Method`. The first
    /// bytes of the connection go to `out`.
    pub fn new(authority: &str, path: &str, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(PREFACE);
        // ENABLE_PUSH 0, INITIAL_WINDOW_SIZE as large as can be.
        frame(out, SETTINGS, 0, 0, 12);
        out.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        out.extend_from_slice(&OUR_WINDOW.to_be_bytes());
        frame(out, WINDOW_UPDATE, 0, 0, 4);
        out.extend_from_slice(&(OUR_WINDOW - 65_535).to_be_bytes());
        Self {
            authority: authority.to_owned(),
            path: path.to_owned(),
            next: 1,
            window: FIRST_WINDOW,
        }
    }

    /// Whether a message may be sent now.
    pub fn fits(&self, message: &[u8]) -> bool {
        self.window >= i64::try_from(message.len() + 5).unwrap_or(i64::MAX)
    }

    /// Appends a call with this message and returns its stream.
    pub fn call(&mut self, message: &[u8], out: &mut Vec<u8>) -> anyhow::Result<u32> {
        let length = message.len() + 5;
        ensure!(length <= MOST, "the message is too long for one frame");
        let stream = self.next;
        let mut head = Vec::with_capacity(128);
        // :method POST and :scheme http are in every table.
        head.extend_from_slice(&[0x83, 0x86]);
        if stream == 1 {
            // With indexing: later calls say only where these stand.
            text(&mut head, &[0x44], &self.path);
            text(&mut head, &[0x41], &self.authority);
            text(&mut head, &[0x5f], "application/grpc");
            text(&mut head, &[0x40, 2, b't', b'e'], "trailers");
            text(&mut head, &[0x7a], "countersign-bench");
        } else {
            // The newest stands at 62.
            head.extend_from_slice(&[0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
        }
        frame(out, HEADERS, END_HEADERS, stream, head.len());
        out.extend_from_slice(&head);
        frame(out, DATA, END_STREAM, stream, length);
        out.push(0); // not compressed
        out.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        out.extend_from_slice(message);
        self.next += 2;
        self.window -= i64::try_from(length)?;
        Ok(stream)
    }
}

/// Appends what an event asks for, if anything.
pub fn acknowledge(event: Event, out: &mut Vec<u8>) {
    match event {
        Event::Settings => frame(out, SETTINGS, ACK, 0, 0),
        Event::Ping(data) => {
            frame(out, PING, ACK, 0, data.len());
            out.extend_from_slice(&data);
        }
        Event::Ended { .. } | Event::Allowed(_) => {}
    }
}

impl Replies {
    /// Reads more bytes and tells of what is whole.
    pub fn read(&mut self, bytes: &[u8], mut tell: impl FnMut(Event)) -> anyhow::Result<()> {
        self.bytes.extend_from_slice(bytes);
        let mut rest = self.bytes.as_slice();
        while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEAD>() {
            let [a, b, c, kind, flags, stream @ ..] = *head;
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c]))?;
            let Some((payload, after)) = after.split_at_checked(length) else {
                break;
            };
            rest = after;
            let stream = u32::from_be_bytes(stream);
            match kind {
                DATA => {
                    self.answered.insert(stream);
                    if self.body_of != stream {
                        self.body_of = stream;
                        self.body.clear();
                    }
                    self.body.extend_from_slice(payload);
                }
                SETTINGS if flags & ACK == 0 => tell(Event::Settings),
                PING if flags & ACK == 0 => tell(Event::Ping(payload.try_into()?)),
                WINDOW_UPDATE if stream == 0 => {
                    let more = u32::from_be_bytes(payload.try_into()?);
                    tell(Event::Allowed(i64::from(more)));
                }
                GOAWAY => bail!("the server closes the connection"),
                _ => {}
            }
            let over = kind == RST_STREAM || (kind <= HEADERS && flags & END_STREAM != 0);
            if over && self.ended.insert(stream) {
                let answered = self.answered.remove(&stream) && kind != RST_STREAM;
                tell(Event::Ended { stream, answered });
            }
        }
        let left = rest.len();
        let read = self.bytes.len() - left;
        self.bytes.drain(..read);
        Ok(())
    }

    /// The message of the last answer, where one call follows another.
    pub fn message(&self) -> anyhow::Result<&[u8]> {
        let message = self.body.get(5..);
        message.context("an answer without a message")
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, length: usize) {
    // No frame of ours is longer than MOST.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(length.get(1..).unwrap_or_default());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// A header with its value in plain text; no value of ours has 127 bytes.
fn text(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.push(u8::try_from(value.len()).unwrap_or_default() & 0x7f);
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<Event> {
        let (mut replies, mut events) = (Replies::default(), Vec::new());
        for chunk in chunks {
            replies.read(chunk, |event| events.push(event)).unwrap();
        }
        events
    }

    #[test]
    fn a_message_makes_the_difference_between_an_answer_and_a_refusal() {
        let mut answer = Vec::new();
        frame(&mut answer, HEADERS, END_HEADERS, 1, 1);
        answer.push(0x88);
        frame(&mut answer, DATA, 0, 1, 5);
        answer.extend_from_slice(&[0; 5]);
        frame(&mut answer, HEADERS, END_HEADERS | END_STREAM, 1, 0);
        let mut refusal = Vec::new();
        frame(&mut refusal, HEADERS, END_HEADERS | END_STREAM, 3, 0);
        let ended = |stream, answered| Event::Ended { stream, answered };
        assert_eq!(
            events(&[&answer, &refusal]),
            [ended(1, true), ended(3, false)]
        );
        let mut reset = Vec::new();
        frame(&mut reset, RST_STREAM, 0, 1, 4);
        reset.extend_from_slice(&[0; 4]);
        assert_eq!(events(&[&answer, &reset]), [ended(1, true)]);
        assert_eq!(events(&[&reset]), [ended(1, false)]);
        // A byte at a time says the same.
        let bytes: Vec<&[u8]> = answer.chunks(1).chain(refusal.chunks(1)).collect();
        assert_eq!(events(&bytes), [ended(1, true), ended(3, false)]);
    }

    #[test]
    fn what_the_server_wants_back_it_gets() {
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, 0);
        frame(&mut bytes, PING, 0, 0, 8);
        bytes.extend_from_slice(&[7; 8]);
        frame(&mut bytes, WINDOW_UPDATE, 0, 0, 4);
        bytes.extend_from_slice(&9_u32.to_be_bytes());
        let events = events(&[&bytes]);
        assert_eq!(
            events,
            [Event::Settings, Event::Ping([7; 8]), Event::Allowed(9)]
        );
        let mut out = Vec::new();
        for event in events {
            acknowledge(event, &mut out);
        }
        assert_eq!(out.len(), 2 * FRAME_HEAD + 8);
    }

    #[test]
    fn headers_are_sent_in_full_once() {
        let mut out = Vec::new();
        let mut requests = Requests::new("localhost", "/a.B/C", &mut out);
        let mut sizes = Vec::new();
        for _ in 0..3 {
            out.clear();
            requests.call(b"hello", &mut out).unwrap();
            sizes.push(out.len());
        }
        assert!(sizes[0] > sizes[1]);
        assert_eq!(sizes[1], 2 * FRAME_HEAD + 7 + 10);
        assert_eq!(sizes[1], sizes[2]);
        assert_eq!(requests.window, FIRST_WINDOW - 30);
        assert!(requests.call(&[0; MOST], &mut out).is_err());
    }
}
