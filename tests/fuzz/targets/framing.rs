//! Where HTTP/1.1 messages end: in one piece, in pieces and byte by byte the same, and as a slow reader of the whole
//! connection says.

use platform_api::http::framing::{Flaw, Framing, HEAD_BYTES_MAX, Place};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "framing",
    check,
    seeds: &[],
    words: &[
        "GET / HTTP/1.1\r\n",
        "POST /v1/usage/events HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "Host: a\r\n",
        "host:b\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "0;x=y\r\nT: t\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "18446744073709551616",
    ],
};

fn check(input: &[u8]) {
    let whole = told(input, input.len().max(1));
    let step = usize::from(input.first().copied().unwrap_or(1)) % 16 + 1;
    assert_eq!(told(input, 1), whole, "byte by byte it is read in another way");
    assert_eq!(told(input, step), whole, "in pieces of {step} it is read in another way");
    if input.len() <= HEAD_BYTES_MAX {
        assert_eq!(whole.ok(), slowly(input));
    }
}

fn told(input: &[u8], step: usize) -> Result<(u64, Place), Flaw> {
    let mut framing = Framing::default();
    input.chunks(step).try_for_each(|piece| framing.feed(piece))?;
    Ok((framing.heads(), framing.place()))
}

/// Whole heads, and where the end of `input` is; `None` when it cannot be read in one way only.
fn slowly(input: &[u8]) -> Option<(u64, Place)> {
    let mut rest: Vec<u8> = input.to_vec();
    let mut heads = 0;
    loop {
        let start = rest.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(rest.len());
        rest.drain(..start);
        if rest.is_empty() {
            return Some((heads, Place::Between));
        }
        let Some(end) = find(&rest, b"\r\n\r\n") else {
            return line_ends_are_whole(&rest).then_some((heads, Place::Head));
        };
        let head: Vec<u8> = rest.drain(..end + 4).collect();
        if !line_ends_are_whole(&head) {
            return None;
        }
        heads += 1;
        if head == b"PRI * HTTP/2.0\r\n\r\n" {
            return Some((heads, Place::Multiplexed));
        }
        let after = match body(&head)? {
            Body::Length(bytes) => usize::try_from(bytes).ok().filter(|bytes| *bytes <= rest.len()),
            Body::Chunked => match chunked(&rest)? {
                Chunked::Ends(at) => Some(at),
                Chunked::GoesOn => None,
            },
        };
        match after {
            Some(bytes) => drop(rest.drain(..bytes)),
            None => return Some((heads, Place::Body)),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Each LF after a CR, each CR before an LF or at the very end.
fn line_ends_are_whole(bytes: &[u8]) -> bool {
    (0..bytes.len()).all(|at| match bytes[at] {
        b'\n' => at > 0 && bytes[at - 1] == b'\r',
        b'\r' => at + 1 == bytes.len() || bytes[at + 1] == b'\n',
        _ => true,
    })
}

enum Body {
    Length(u64),
    Chunked,
}

fn body(head: &[u8]) -> Option<Body> {
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
    let first = lines.next()?;
    let mut found: Vec<(String, String)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.is_empty() || name.contains([' ', '\t', '\u{c}']) {
            return None;
        }
        found.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t', '\u{c}']).to_owned()));
    }
    let all = |wanted: &str| {
        found.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let hosts = all("host").len();
    let is_newer = first.trim_end_matches([' ', '\t', '\u{c}']).ends_with(" HTTP/1.1");
    if hosts > 1 || (hosts == 0 && is_newer) {
        return None;
    }
    match (all("content-length").as_slice(), all("transfer-encoding").as_slice()) {
        ([], []) => Some(Body::Length(0)),
        ([length], []) if length.bytes().all(|digit| digit.is_ascii_digit()) => length.parse().ok().map(Body::Length),
        ([], [coding]) => coding.eq_ignore_ascii_case("chunked").then_some(Body::Chunked),
        _ => None,
    }
}

enum Chunked {
    Ends(usize),
    GoesOn,
}

fn chunked(bytes: &[u8]) -> Option<Chunked> {
    let mut at = 0;
    let mut in_trailer = false;
    loop {
        let Some(length) = find(&bytes[at..], b"\n") else {
            return (bytes.len() - at <= 1_024).then_some(Chunked::GoesOn);
        };
        let line = bytes[at..at + length].strip_suffix(b"\r").filter(|_| length < 1_024)?;
        at += length + 1;
        if in_trailer {
            if line.is_empty() {
                return Some(Chunked::Ends(at));
            }
            continue;
        }
        let size = std::str::from_utf8(line.split(|byte| *byte == b';').next()?.trim_ascii_end()).ok()?;
        let plain = (1..=15).contains(&size.len()) && size.bytes().all(|digit| digit.is_ascii_hexdigit());
        match u64::from_str_radix(plain.then_some(size)?, 16).ok()? {
            0 => in_trailer = true,
            bytes_of_chunk => match usize::try_from(bytes_of_chunk + 2).ok().filter(|chunk| *chunk <= bytes.len() - at)
            {
                Some(chunk) => at += chunk,
                None => return Some(Chunked::GoesOn),
            },
        }
    }
}
