//! Where one HTTP/1.1 message ends and the next begins, read strictly.
//!
//! The library behind us forgives what two readers may understand in two ways: a length beside `chunked`, a line that
//! ends without CR, a header folded over two lines, a missing or doubled `Host`. Whoever stands before us may have
//! understood it in the other way, and a request would be smuggled past it; so these are refused before the library
//! sees them. This follows the bytes of a connection from head to head, bodies skipped, and keeps nothing else.

/// Longest head of a request: its line and its headers.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Longest line of a chunk's size, and of a trailer.
const CHUNK_LINE_BYTES_MAX: usize = 1_024;
/// What is kept for the next head of a connection.
const KEPT_BYTES: usize = 1_024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Why a connection cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Not HTTP/1.1, or not in one way only.
    Malformed,
    /// The head is longer than [`HEAD_BYTES_MAX`].
    TooLarge,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A request that has not begun.
    Between,
    Head,
    Body,
    /// HTTP/2, whose frames are the library's affair.
    Multiplexed,
}

/// Follows the bytes of one connection.
#[derive(Debug, Default)]
pub struct Framing {
    state: State,
    /// The head, or the line, that is not complete yet.
    kept: Vec<u8>,
    heads: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// So many bytes of a body, or of a chunk with its line end.
    Skip {
        bytes: u64,
        chunked: bool,
    },
    ChunkSize,
    Trailer,
    Multiplexed,
}

impl Framing {
    /// Whole heads that were read.
    #[must_use]
    pub fn heads(&self) -> u64 {
        self.heads
    }

    #[must_use]
    pub fn place(&self) -> Place {
        match self.state {
            State::Head if self.kept.is_empty() => Place::Between,
            State::Head => Place::Head,
            State::Multiplexed => Place::Multiplexed,
            State::Skip { .. } | State::ChunkSize | State::Trailer => Place::Body,
        }
    }

    /// Goes on by `bytes`.
    ///
    /// # Errors
    /// [`Flaw`]; the connection is over then.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Flaw> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Multiplexed => return Ok(()),
                State::Head => self.head(bytes)?,
                State::Skip { bytes: left, chunked } => self.skip(bytes, left, chunked),
                State::ChunkSize | State::Trailer => self.line(bytes)?,
            };
        }
        Ok(())
    }

    fn skip<'a>(&mut self, bytes: &'a [u8], left: u64, chunked: bool) -> &'a [u8] {
        let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.state = match left - skipped as u64 {
            0 if chunked => State::ChunkSize,
            0 => State::Head,
            left => State::Skip { bytes: left, chunked },
        };
        &bytes[skipped..]
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Flaw> {
        if self.kept.is_empty() && matches!(bytes[0], b'\r' | b'\n') {
            // An empty line before a request is passed over, as RFC 9112 asks.
            return Ok(&bytes[1..]);
        }
        let known = self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX + 1 - known)]);
        let end = memchr::memmem::find(&self.kept[known.saturating_sub(3)..], END_OF_HEAD);
        let Some(end) = end.map(|at| at + known.saturating_sub(3) + END_OF_HEAD.len()) else {
            has_whole_line_ends(&self.kept, known)?;
            return if self.kept.len() > HEAD_BYTES_MAX { Err(Flaw::TooLarge) } else { Ok(&[]) };
        };
        self.kept.truncate(end);
        has_whole_line_ends(&self.kept, known)?;
        self.state = if self.kept == HTTP2_PREFACE { State::Multiplexed } else { after_head(&self.kept)? };
        self.heads += 1;
        self.kept.clear();
        self.kept.shrink_to(KEPT_BYTES);
        Ok(&bytes[end - known..])
    }

    fn line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Flaw> {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        if self.kept.len() + end > CHUNK_LINE_BYTES_MAX {
            return Err(Flaw::Malformed);
        }
        self.kept.extend_from_slice(&bytes[..end]);
        if self.kept.ends_with(b"\n") {
            let line = self.kept.strip_suffix(b"\r\n").ok_or(Flaw::Malformed)?;
            self.state = match (self.state, line) {
                (State::Trailer, []) => State::Head,
                (State::Trailer, _) => State::Trailer,
                _ => after_chunk_size(line)?,
            };
            self.kept.clear();
        }
        Ok(&bytes[end..])
    }
}

/// Every LF from `known` on ends a CR LF, and every CR but the last byte begins one.
fn has_whole_line_ends(head: &[u8], known: usize) -> Result<(), Flaw> {
    let whole = memchr::memchr2_iter(b'\r', b'\n', &head[known..]).map(|at| at + known).all(|at| match head[at] {
        b'\n' => at > 0 && head[at - 1] == b'\r',
        _ => head.get(at + 1).is_none_or(|next| *next == b'\n'),
    });
    // A CR that was the last byte known so far.
    let open = known > 0 && head[known - 1] == b'\r' && head.get(known).is_some_and(|next| *next != b'\n');
    if whole && !open { Ok(()) } else { Err(Flaw::Malformed) }
}

/// What follows a head: `Host` once, at most one way to tell the body's length, and no header over two lines.
fn after_head(head: &[u8]) -> Result<State, Flaw> {
    let mut lines = head[..head.len() - END_OF_HEAD.len()].split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default().trim_ascii_end();
    let (mut hosts, mut lengths, mut codings) = (0, Vec::new(), Vec::new());
    for line in lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)) {
        let colon = memchr::memchr(b':', line).ok_or(Flaw::Malformed)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A name with a space in it is also the mark of a folded line.
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(Flaw::Malformed);
        }
        match name {
            name if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            name if name.eq_ignore_ascii_case(b"content-length") => lengths.push(value),
            name if name.eq_ignore_ascii_case(b"transfer-encoding") => codings.push(value),
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && line.ends_with(b" HTTP/1.1")) {
        return Err(Flaw::Malformed);
    }
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(State::Head),
        ([length], []) => match decimal(length).ok_or(Flaw::Malformed)? {
            0 => Ok(State::Head),
            bytes => Ok(State::Skip { bytes, chunked: false }),
        },
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Ok(State::ChunkSize),
        _ => Err(Flaw::Malformed),
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

fn after_chunk_size(line: &[u8]) -> Result<State, Flaw> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let plain = (1..=15).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(size).map_err(|_| Flaw::Malformed)?;
    match u64::from_str_radix(text, 16) {
        Ok(0) if plain => Ok(State::Trailer),
        // The chunk's own line end is skipped with it.
        Ok(bytes) if plain => Ok(State::Skip { bytes: bytes + 2, chunked: true }),
        _ => Err(Flaw::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of it in one piece; byte by byte it must come to the same.
    fn read(bytes: &[u8]) -> Result<(u64, Place), Flaw> {
        let mut whole = Framing::default();
        let told = whole.feed(bytes).map(|()| (whole.heads(), whole.place()));
        let mut slow = Framing::default();
        let slowly = bytes.iter().try_for_each(|byte| slow.feed(&[*byte])).map(|()| (slow.heads(), slow.place()));
        assert_eq!(told, slowly, "{}", String::from_utf8_lossy(bytes));
        told
    }

    #[test]
    fn messages_are_told_apart() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (text, heads, place) in [
            (String::new(), 0, Place::Between),
            ("GET /".into(), 0, Place::Head),
            (get.into(), 1, Place::Between),
            (format!("\r\n{get}{get}GET"), 2, Place::Head),
            ("GET / HTTP/1.0\r\n\r\n".into(), 1, Place::Between),
            (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello{get}"), 2, Place::Between),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell".into(), 1, Place::Body),
            (
                format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: t\r\n\r\n{get}"
                ),
                2,
                Place::Between,
            ),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nanything\n".into(), 1, Place::Multiplexed),
        ] {
            assert_eq!(read(text.as_bytes()), Ok((heads, place)), "{text:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_read() {
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello",
        ] {
            assert_eq!(read(text.as_bytes()), Err(Flaw::Malformed), "{text:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(read(long.as_bytes()), Err(Flaw::TooLarge));
    }
}
