//! A budget of frames for each connection: what it says must be for the sake of
//! its calls.
//!
//! The HTTP/2 library answers pings and takes settings, windows and resets
//! without end, and limits resets in bursts only. A client that calls has need of
//! few such frames for each answer that it gets (RFC 9113, section 10.5, asks that
//! more be held against it). So each frame but DATA costs one, each HEADERS or
//! DATA frame that is sent to the client earns some, and a little comes with time.
//! Whoever has spent it all gets a GOAWAY with ENHANCE_YOUR_CALM and is cut off.
//!
//! The frames are only followed from one head to the next: what they mean is for
//! the library, and so are DATA frames, whose number it bounds.

use std::time::Duration;

use tokio::time::Instant;

/// What a client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame's head (section 4.1).
pub(super) const HEAD: usize = 9;

/// What there is at first, and at most.
const MOST: u64 = 10_000;

/// A call that is answered by headers alone has need of a HEADERS frame, of a
/// reset where the answer came early, of a window and of a ping.
const FOR_EACH_SENT: u64 = 4;

/// For pings that keep a quiet connection open, and for calls that are given up
/// while the service is slow: a client whose calls all time out does no wrong.
const FOR_EACH_SECOND: u64 = 100;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PING: u8 = 0x6;

/// What is left for a connection, and where its frames are.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    earned_at: Instant,
    preface_seen: usize,
    /// As far as is known; HTTP/1.1 may be served too.
    is_http2: bool,
    read: Frames,
    written: Frames,
    /// The last stream that the client began.
    last_stream: u32,
}

/// The budget is spent.
#[derive(Debug)]
pub(super) struct Spent {
    last_stream: u32,
    by_ping: bool,
}

/// One direction of a connection, from the head of one frame to the next.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD],
    /// How much of the head is here.
    here: usize,
    /// How much of the frame is still to come.
    payload: usize,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy)]
struct Head {
    kind: u8,
    stream: u32,
}

impl Budget {
    /// For a connection that begins.
    pub(super) fn new() -> Self {
        Self {
            left: MOST,
            earned_at: Instant::now(),
            preface_seen: 0,
            is_http2: true,
            read: Frames::default(),
            written: Frames::default(),
            last_stream: 0,
        }
    }

    /// Takes what the client has sent into account. What comes after an error is
    /// not looked at any more.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Spent> {
        while self.preface_seen < PREFACE.len() {
            let Some((byte, rest)) = bytes.split_first() else {
                return Ok(());
            };
            self.is_http2 &= PREFACE.get(self.preface_seen) == Some(byte);
            self.preface_seen += 1;
            bytes = rest;
        }
        if !self.is_http2 {
            return Ok(());
        }
        while let Some(head) = self.read.next(&mut bytes) {
            if head.kind == HEADERS {
                self.last_stream = self.last_stream.max(head.stream);
            }
            if head.kind != DATA && !self.spend() {
                return Err(Spent {
                    last_stream: self.last_stream,
                    by_ping: head.kind == PING,
                });
            }
        }
        Ok(())
    }

    /// Takes what was sent to the client into account.
    pub(super) fn written(&mut self, mut bytes: &[u8]) {
        while let Some(head) = self.written.next(&mut bytes) {
            if matches!(head.kind, DATA | HEADERS) {
                self.earn(FOR_EACH_SENT);
            }
        }
    }

    /// Whether what was written ends with a frame, so that another may follow.
    pub(super) fn is_between_frames(&self) -> bool {
        self.written.here == 0 && self.written.payload == 0
    }

    fn earn(&mut self, frames: u64) {
        self.left = self.left.saturating_add(frames).min(MOST);
    }

    fn spend(&mut self) -> bool {
        if self.left == 0 {
            // Only now is the clock looked at.
            let seconds = self.earned_at.elapsed().as_secs();
            self.earned_at += Duration::from_secs(seconds);
            self.earn(seconds.saturating_mul(FOR_EACH_SECOND));
        }
        let some_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some_left
    }
}

/// How many frames are counted of a connection that sends these parts, and the last
/// stream that it begins: the way in for the fuzz target `frames`.
#[doc(hidden)]
pub fn followed<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (u64, u32) {
    let mut budget = Budget::new();
    for part in parts {
        if budget.read(part).is_err() {
            break;
        }
    }
    (MOST - budget.left, budget.last_stream)
}

impl Spent {
    /// The frame that says so: GOAWAY (section 6.8) with ENHANCE_YOUR_CALM. gRPC
    /// clients that read the first of the words ping less often afterwards.
    pub(super) fn farewell(&self) -> Vec<u8> {
        const ENHANCE_YOUR_CALM: u8 = 0xb;
        let words: &[u8] = if self.by_ping {
            b"too_many_pings"
        } else {
            b"too_many_frames"
        };
        let length = u8::try_from(8 + words.len()).unwrap_or_default();
        let mut frame = vec![0, 0, length, 0x7, 0, 0, 0, 0, 0];
        frame.extend(self.last_stream.to_be_bytes());
        frame.extend([0, 0, 0, ENHANCE_YOUR_CALM]);
        frame.extend(words);
        frame
    }
}

impl Frames {
    /// Goes on to the head of the next frame, if it ends in these bytes.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let passed = self.payload.min(bytes.len());
        self.payload -= passed;
        *bytes = bytes.get(passed..)?;
        let missing = self.head.get_mut(self.here..)?;
        let found = missing.len().min(bytes.len());
        let (head, rest) = bytes.split_at_checked(found)?;
        missing.get_mut(..found)?.copy_from_slice(head);
        *bytes = rest;
        self.here += found;
        if self.here < HEAD {
            return None;
        }
        self.here = 0;
        let [l1, l2, l3, kind, _flags, s1, s2, s3, s4] = self.head;
        self.payload = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        Some(Head {
            kind,
            // The first bit is reserved.
            stream: u32::from_be_bytes([s1, s2, s3, s4]) & (u32::MAX >> 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: usize) -> Vec<u8> {
        let mut frame = u32::try_from(payload).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0]);
        frame.extend(stream.to_be_bytes());
        frame.resize(HEAD + payload, 0xa5);
        frame
    }

    /// A connection that has begun.
    fn begun() -> Budget {
        let mut budget = Budget::new();
        budget.read(PREFACE).unwrap();
        budget
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_however_they_come() {
        let mut sent = PREFACE.to_vec();
        for (kind, stream, payload) in [(4, 0, 6), (HEADERS, 1, 300), (DATA, 1, 0), (PING, 0, 8)] {
            sent.extend(frame(kind, stream, payload));
        }
        sent.extend(frame(HEADERS, (1 << 31) | 7, 20_000));
        for size in [1, 2, 7, 9, 24, 33, 100, sent.len()] {
            let mut budget = Budget::new();
            for part in sent.chunks(size) {
                budget.read(part).unwrap();
            }
            assert_eq!((budget.left, budget.last_stream), (MOST - 4, 7), "{size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spent_is_earned_by_answers_and_by_time() {
        let mut budget = begun();
        let until_spent = |budget: &mut Budget| {
            let mut frames = 0;
            while budget.spend() {
                frames += 1;
            }
            frames
        };
        budget.read(&frame(HEADERS, 5, 10)).unwrap();
        assert_eq!(until_spent(&mut budget), MOST - 1);
        assert_eq!(until_spent(&mut budget), 0);
        // An answer: headers, two frames of data, trailers. A ping earns nothing.
        for kind in [HEADERS, DATA, DATA, HEADERS, PING] {
            budget.written(&frame(kind, 5, 12));
        }
        assert_eq!(until_spent(&mut budget), 4 * FOR_EACH_SENT);
        tokio::time::advance(Duration::from_millis(2500)).await;
        assert_eq!(until_spent(&mut budget), 2 * FOR_EACH_SECOND);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(until_spent(&mut budget), FOR_EACH_SECOND);
        // Nothing is saved beyond what there was at first.
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(until_spent(&mut budget), MOST);

        let spent = budget.read(&frame(PING, 0, 8)).unwrap_err();
        let farewell = b"\0\0\x16\x07\0\0\0\0\0\0\0\0\x05\0\0\0\x0btoo_many_pings";
        assert_eq!(spent.farewell(), farewell);
        budget.read = Frames::default();
        let spent = budget.read(&frame(0x8, 0, 4)).unwrap_err();
        assert!(spent.farewell().ends_with(b"\x0btoo_many_frames"));
    }

    #[tokio::test(start_paused = true)]
    async fn data_and_other_protocols_are_not_counted() {
        let mut budget = begun();
        for _ in 0..2 * MOST {
            budget.read(&frame(DATA, 1, 1)).unwrap();
        }
        assert_eq!(budget.left, MOST);
        let mut budget = Budget::new();
        for _ in 0..2 * MOST {
            budget.read(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        }
        assert_eq!(budget.left, MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_known_where_another_frame_may_follow() {
        let mut budget = begun();
        assert!(budget.is_between_frames());
        let data = frame(DATA, 1, 10);
        for cut in 1..data.len() {
            budget.written(&data[..cut]);
            assert!(!budget.is_between_frames(), "{cut}");
            budget.written(&data[cut..]);
            assert!(budget.is_between_frames(), "{cut}");
        }
    }
}
