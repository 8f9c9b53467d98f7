//! Gives each connection bytes of its own, of which each is a function of its place.
//!
//! So one that receives knows what has to come without keeping what was sent, and a byte that is
//! lost, repeated, altered or another connection's is found where it comes. Eight bytes are made at
//! once: two cores have to make and verify all of it beside the daemon that is under load.

/// How far from its place a piece is looked for, to say how many bytes were lost or repeated before
/// it.
const SEARCHED: u64 = 1024 * 1024;
/// So many bytes are not found by chance.
const SAMPLE: usize = 12;

/// The bytes of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern(u64);

impl Pattern {
    /// No two seeds have the same.
    pub(crate) const fn of(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Writes what comes from that place on.
    pub(crate) fn fill(self, offset: u64, buffer: &mut [u8]) {
        self.pieces(offset, buffer.len(), |range, expected| {
            buffer[range].copy_from_slice(expected);
            true
        });
    }

    /// Whether that is what comes from that place on; else where it goes wrong, and in what way.
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

    /// Goes through that many bytes by words, as long as `each` says so; it is told where in them,
    /// and what belongs there.
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

    /// What came instead of what belongs there.
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
            None => format!("at byte {offset}: {sample:02x?} is of nowhere near"),
        }
    }
}

/// Numbers that look like chance, the same each time: how large a piece is, how long a pause.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Those that belong to a seed.
    pub(crate) const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// One from `least` to `most`.
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

#[test]
fn the_pattern_is_the_same_in_whatever_pieces_and_names_what_is_wrong_with_it() {
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
