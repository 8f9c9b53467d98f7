//! The byte pattern of a connection: each byte is a function of the connection's seed and of its
//! position.
//!
//! A receiver knows which byte must come next without a copy of what was sent. It detects a lost,
//! repeated, altered or foreign byte at once. Eight bytes are generated together, because two cores
//! generate and verify all of it beside the daemon under load.

/// How far around its position a piece is searched, in bytes. The distance tells how many bytes
/// were lost or repeated.
const SEARCHED: u64 = 1024 * 1024;
/// How many bytes are compared in a search: enough to exclude a match by chance.
const SAMPLE: usize = 12;

/// The byte pattern of one direction of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern(u64);

impl Pattern {
    /// Returns the pattern of a seed. No two seeds have the same pattern.
    pub(crate) const fn of(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Fills the buffer with the pattern from `offset` on.
    pub(crate) fn fill(self, offset: u64, buffer: &mut [u8]) {
        self.pieces(offset, buffer.len(), |range, expected| {
            buffer[range].copy_from_slice(expected);
            true
        });
    }

    /// Verifies that the bytes are the pattern from `offset` on. The error says where they differ,
    /// and how.
    pub(crate) fn check(self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let mut right = 0;
        self.pieces(offset, bytes.len(), |range, expected| {
            right = range.start;
            bytes[range] == *expected
        });
        let mut expected = vec![0; (bytes.len() - right).min(8)];
        self.fill(offset + right as u64, &mut expected);
        let wrong = bytes[right..].iter().zip(&expected).position(|(came, due)| came != due);
        wrong.map_or(Ok(()), |wrong| {
            Err(self.diagnose(offset + (right + wrong) as u64, &bytes[right + wrong..]))
        })
    }

    /// Generates `length` bytes of the pattern in pieces, for as long as `each` returns true.
    /// `each` gets the range of a piece and its bytes.
    fn pieces(
        self,
        offset: u64,
        length: usize,
        mut each: impl FnMut(std::ops::Range<usize>, &[u8]) -> bool,
    ) {
        let mut index = offset / 8;
        let mut within = usize::from((offset % 8).to_le_bytes()[0]);
        let mut done = 0;
        while done < length {
            let count = (8 - within).min(length - done);
            let word = self.word(index);
            if !each(done..done + count, &word[within..within + count]) {
                return;
            }
            done += count;
            within = 0;
            index += 1;
        }
    }

    const fn word(self, index: u64) -> [u8; 8] {
        mix(self.0.wrapping_add(index)).to_le_bytes()
    }

    /// Describes the wrong bytes.
    fn diagnose(self, offset: u64, came: &[u8]) -> String {
        let from = offset.saturating_sub(SEARCHED);
        let mut around = vec![0; usize::try_from(offset + SEARCHED - from).unwrap()];
        self.fill(from, &mut around);
        let sample = &came[..came.len().min(SAMPLE)];
        let found = around
            .windows(SAMPLE)
            .position(|window| window == sample)
            .map(|place| from + place as u64);
        match found {
            Some(later) if later > offset => {
                format!("at byte {offset}: {} are lost", later - offset)
            }
            Some(earlier) => format!("at byte {offset}: {} are repeated", offset - earlier),
            None => format!("at byte {offset}: {sample:02x?} is not in the pattern nearby"),
        }
    }
}

/// Pseudo-random numbers for sizes and pauses, the same in each run.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Returns the numbers of a seed.
    pub(crate) const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number from `least` to `most`.
    pub(crate) fn between(&mut self, least: usize, most: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        let [a, b, c, d, ..] = mix(self.0.rotate_left(32)).to_le_bytes();
        let number = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap();
        least + number % (most - least + 1)
    }
}

/// The mixing step of splitmix64.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Any division into pieces gives the same bytes, and each fault is described.
#[test]
fn the_pattern_is_consistent_and_detects_every_fault() {
    let pattern = Pattern::of(7);
    let mut whole = vec![0; 5_000];
    pattern.fill(3, &mut whole);
    let mut pieces = Vec::new();
    for length in (1..).take_while(|length| length * (length + 1) / 2 <= whole.len()) {
        let mut piece = vec![0; length];
        pattern.fill(3 + pieces.len() as u64, &mut piece);
        pieces.extend(piece);
    }
    assert_eq!(pieces, whole[..pieces.len()]);
    assert_eq!(pattern.check(3, &whole), Ok(()));
    assert!(Pattern::of(8).check(3, &whole).is_err());
    let says = |bytes: &[u8], words: &str| {
        assert!(pattern.check(3, bytes).unwrap_err().contains(words), "{words}")
    };
    let mut altered = whole.clone();
    altered[4_321] ^= 1;
    says(&altered, "at byte 4324: [");
    altered = whole.clone();
    altered.drain(1_001..1_100);
    says(&altered, "at byte 1004: 99 are lost");
    altered = [&whole[..2_000], &whole[1_990..]].concat();
    says(&altered, "at byte 2003: 10 are repeated");
}
