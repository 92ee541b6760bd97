//! What happened, as lines for a reader and as one number for a comparison. The same seed gives the same number.

/// One run's story.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    /// Kept only for a run that somebody reads.
    lines: Option<Vec<String>>,
}

impl Trace {
    pub fn new(told: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, lines: told.then(Vec::new) }
    }

    /// Adds a line. FNV-1a: cheap, and good enough to tell two stories apart.
    pub fn tell(&mut self, now: i64, line: std::fmt::Arguments<'_>) {
        let line = format!("{:>12.3} s  {line}", now as f64 / 1e6);
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}
