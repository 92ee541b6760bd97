//! Changes to inputs: of bytes, and of JSON that stays JSON, because what no parser accepts tests little.

/// A small generator of random numbers (SplitMix64): the same seed gives the same input on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero below zero.
    fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Values at the edges of what readers do.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-1",
    "1",
    "1.5",
    "1e2",
    "1e400",
    "1E-7",
    "1000000000000",
    "1000000000001",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "0.00031250000000000006",
    "9.099999999999999e-05",
    "100000.000000001",
    "\"\"",
    "\"0.000135\"",
    "\"-1\"",
    "\"1e-9\"",
    "\"\\u0000\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ud800\"",
    "\"\u{fffd}\u{2028}\u{7f}\"",
    "\"2026-11-20T15:37:12.345+02:00\"",
    "\"9999-12-31T23:59:60Z\"",
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "{\"a\":1}",
    "{\"a\":1,\"a\":2}",
    "[\"a\",\"b\"]",
    "{\"a\":\"b\"}",
];

/// One of `corpus`, changed a few times. `words` are what the target's inputs are made of.
pub(crate) fn mutated(random: &mut Random, corpus: &[&[u8]], words: &[&str]) -> Vec<u8> {
    let mut input = random.pick(corpus).to_vec();
    for _ in 0..=random.below(4) {
        let changed = match random.below(3) {
            0 => None,
            _ => changed_json(random, &input, corpus, words),
        };
        match changed {
            Some(json) => input = json,
            None => change_bytes(random, &mut input, corpus, words),
        }
    }
    input
}

fn change_bytes(random: &mut Random, input: &mut Vec<u8>, corpus: &[&[u8]], words: &[&str]) {
    let at = random.below(input.len() + 1);
    let end = (at + 1 + random.below(8)).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next() as u8,
        2 => input.insert(at, random.next() as u8),
        3 => drop(input.drain(at..end)),
        4 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        5 if !words.is_empty() => drop(input.splice(at..at, random.pick::<&str>(words).bytes())),
        6 if !words.is_empty() => drop(input.splice(at..end, random.pick::<&str>(words).bytes())),
        7 => {
            let other = *random.pick(corpus);
            let from = random.below(other.len() + 1);
            let until = (from + random.below(64)).min(other.len());
            input.splice(at..at, other[from..until].iter().copied());
        }
        _ => input.truncate(at),
    }
}

/// Where values and members of a document begin and end.
#[derive(Default)]
struct Places {
    values: Vec<(usize, usize)>,
    /// Name and value together.
    members: Vec<(usize, usize)>,
}

fn changed_json(random: &mut Random, input: &[u8], corpus: &[&[u8]], words: &[&str]) -> Option<Vec<u8>> {
    let places = places(input);
    if places.values.is_empty() {
        return None;
    }
    let (start, end) = *random.pick(&places.values);
    let other = *random.pick(corpus);
    let replaced = |range: (usize, usize), by: &[u8]| [&input[..range.0], by, &input[range.1..]].concat();
    let quoted = |word: &str| serde_json::Value::from(word).to_string();
    Some(match random.below(9) {
        0..=2 => replaced((start, end), random.pick(VALUES).as_bytes()),
        3 if !words.is_empty() => replaced((start, end), quoted(random.pick::<&str>(words)).as_bytes()),
        4 => {
            let from = self::places(other);
            let donor = if from.values.is_empty() { (0, 0) } else { *random.pick(&from.values) };
            replaced((start, end), &other[donor.0..donor.1])
        }
        5 => replaced((start, end), quoted(&"x".repeat(1 << random.below(12))).as_bytes()),
        6 => [&input[..start], b"[", &input[start..end], b"]", &input[end..]].concat(),
        choice if !places.members.is_empty() => {
            let (start, end) = *random.pick(&places.members);
            let member = &input[start..end];
            match choice {
                // Once more, perhaps with another name.
                7 if !words.is_empty() && random.below(2) == 0 => {
                    let renamed =
                        [quoted(random.pick::<&str>(words)).as_bytes(), b":", random.pick(VALUES).as_bytes()].concat();
                    replaced((start, start), &[renamed.as_slice(), b","].concat())
                }
                7 => replaced((start, start), &[member, b","].concat()),
                _ => {
                    // Gone, with the comma beside it.
                    let after = input[end..].iter().position(|byte| *byte == b',' || *byte == b'}').unwrap_or(0);
                    let comma = usize::from(input.get(end + after) == Some(&b','));
                    replaced((start, end + after * comma + comma), b"")
                }
            }
        }
        _ => replaced((start, end), b"null"),
    })
}

/// Finds values and members without asking whether the document is one; bounded by its length.
fn places(input: &[u8]) -> Places {
    let mut places = Places::default();
    // Where open arrays and objects began, and where the member that holds them did.
    let mut open: Vec<(usize, Option<usize>)> = Vec::new();
    let mut name: Option<usize> = None;
    let mut at = 0;
    while at < input.len() {
        let start = at;
        match input[at] {
            b'{' | b'[' => {
                open.push((at, name.take()));
                at += 1;
                continue;
            }
            b'}' | b']' => {
                at += 1;
                let Some((start, member)) = open.pop() else { continue };
                places.values.push((start, at));
                places.members.extend(member.map(|member| (member, at)));
                name = None;
                continue;
            }
            b'"' => {
                at += 1;
                while at < input.len() && input[at] != b'"' {
                    at += 1 + usize::from(input[at] == b'\\');
                }
                at = (at + 1).min(input.len());
                if input[at..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':') {
                    name = Some(start);
                    continue;
                }
            }
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                while at < input.len() && !b",]} \n\r\t".contains(&input[at]) {
                    at += 1;
                }
            }
            _ => {
                at += 1;
                continue;
            }
        }
        places.values.push((start, at));
        places.members.extend(name.take().map(|member| (member, at)));
    }
    places
}
