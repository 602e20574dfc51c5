//! What comes over the network before it is a call, and what a list elsewhere answers.

use countersign::{breach_list, listen};

use super::seed;

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The rest of a SHA-1 that is looked for.
const REST: &str = "0018A45C4D1DEF81644B54AB7F969B88D65";

/// One byte that says how large the parts are in which the rest arrives. The frames of
/// a connection are found however they come, and are those that are there.
pub fn frames(data: &[u8]) {
    let Some((&size, sent)) = data.split_first() else {
        return;
    };
    let (mut counted, mut last_stream) = (0, 0);
    let mut rest = sent.strip_prefix(PREFACE).unwrap_or_default();
    while let Some((&[l1, l2, l3, kind, _, s1, s2, s3, s4], after)) = rest.split_first_chunk() {
        counted += u64::from(kind != 0);
        if kind == 1 {
            last_stream = last_stream.max(u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]));
        }
        let length = usize::try_from(u32::from_be_bytes([0, l1, l2, l3])).expect("fits");
        rest = after.get(length..).unwrap_or_default();
    }
    let size = usize::from(size).max(1);
    for parts in [sent.chunks(size), sent.chunks(sent.len().max(1))] {
        assert_eq!(listen::followed(parts), (counted, last_stream));
    }
}

/// What a list of breached passwords answers: digests and counts, line by line, or it is
/// no answer.
pub fn breach_range(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Some(count) = breach_list::count_in(text, REST) else {
        return;
    };
    let mut expected = 0;
    for line in text.lines() {
        let (digits, seen) = line.split_at_checked(REST.len()).expect("its digits");
        assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let seen: u64 = seen[1..].parse().expect("a number");
        if digits.eq_ignore_ascii_case(REST) {
            expected = expected.max(seen);
        }
    }
    assert_eq!(count, expected);
}

pub(super) fn frames_seeds() -> Vec<(String, Vec<u8>)> {
    // SETTINGS; HEADERS of streams 1 and, with the reserved bit, 7; DATA; PING.
    let frames: [&[u8]; 5] = [
        b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        b"\0\0\x01\x01\x05\0\0\0\x01\x82",
        b"\0\0\x01\x01\x05\x80\0\0\x07\x82",
        b"\0\0\0\0\x01\0\0\0\x01",
        b"\0\0\x08\x06\0\0\0\0\0pingping",
    ];
    let sent = [PREFACE, &frames.concat()].concat();
    let in_parts_of = |size: u8| [&[size], sent.as_slice()].concat();
    vec![
        seed("at_once", in_parts_of(255)),
        seed("byte_by_byte", in_parts_of(1)),
        seed("http_1", b"\x09GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
    ]
}

pub(super) fn breach_range_seeds() -> Vec<(String, Vec<u8>)> {
    let other = "00D4F6E8FA6EECAD2A3AA415EEC418D38EC";
    vec![
        seed("seen", format!("{other}:2\r\n{REST}:3861493\r\n")),
        seed("padded", format!("{other}:0\n{}:7\n", REST.to_lowercase())),
        seed("another_form", format!("{other} 2\n")),
    ]
}
