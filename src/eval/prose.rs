//! English prose without end and without digits, to hide things in.
//!
//! Sentences are drawn from patterns and word lists by a seeded generator of
//! our own, so a seed means the same text in every release.

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0 if `n` is 0. The bias of the remainder is far
    /// below anything that a test could see.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }
}

/// What a slot of a pattern is filled from.
fn words(slot: &str) -> &'static [&'static str] {
    match slot {
        "who" => &[
            "the gardener",
            "the baker",
            "the old sailor",
            "the schoolteacher",
            "a young painter",
            "the innkeeper",
            "her brother",
            "the carpenter",
            "a travelling merchant",
            "the miller",
            "my grandmother",
            "the librarian",
            "the shepherd",
            "a quiet neighbour",
            "the clockmaker",
            "the postman",
            "the fisherman",
            "a visiting doctor",
        ],
        "where" => &[
            "by the river",
            "in the market square",
            "behind the chapel",
            "at the edge of the forest",
            "on the northern road",
            "near the harbour",
            "in the orchard",
            "across the valley",
            "under the stone bridge",
            "at the foot of the hill",
            "in the narrow kitchen",
            "along the canal",
            "beside the mill",
            "on the village green",
        ],
        "thing" => &[
            "a wooden chair",
            "a basket of apples",
            "a copper kettle",
            "an old map",
            "a bundle of letters",
            "a woollen coat",
            "a small boat",
            "a loaf of bread",
            "a broken lantern",
            "a jar of honey",
            "a pair of boots",
            "a leather saddle",
            "a box of candles",
            "a sack of flour",
            "a silver whistle",
            "a faded photograph",
        ],
        "place" => &[
            "the village",
            "the valley",
            "the old harbour",
            "the northern coast",
            "the market town",
            "the high meadow",
            "the island",
            "the lower farm",
            "the mountain pass",
            "the railway station",
        ],
        "deed" => &[
            "mended",
            "carried away",
            "sold",
            "forgot about",
            "admired",
            "borrowed",
            "painted",
            "looked for",
            "cleaned",
            "described",
            "found",
            "gave away",
        ],
        "quality" => &[
            "quiet", "crowded", "cold", "pleasant", "dusty", "bright", "gloomy", "busy",
            "peaceful", "damp", "cheerful", "deserted", "windy",
        ],
        "time" => &[
            "early in the morning",
            "before breakfast",
            "late in the autumn",
            "after the rain",
            "on the first warm day",
            "during the harvest",
            "in the middle of winter",
            "towards evening",
            "long before sunrise",
            "at the end of the week",
            "when the bells rang",
            "while the others slept",
        ],
        "weather" => &[
            "The wind came from the sea",
            "A light rain was falling",
            "Fog lay over the fields",
            "The sun stood low",
            "Snow covered the roofs",
            "The clouds moved quickly",
            "The air smelled of wet leaves",
            "A storm had passed in the night",
            "The morning was clear",
        ],
        "noise" => &[
            "a dog barked",
            "a cart rolled past",
            "the church bell rang",
            "a door was closed",
            "children were laughing",
            "somebody played a violin",
            "the geese complained",
            "a train whistled far away",
            "the shutters rattled",
        ],
        "view" => &[
            "the roof needed repair",
            "the road would soon be dry",
            "nobody should travel alone",
            "the harvest would be good",
            "the soup tasted better than usual",
            "the river had never been so high",
            "the new bridge was too narrow",
            "patience was worth more than money",
            "the horses were tired",
            "the price of wool was too low",
            "the winter had been too long",
        ],
        _ => &[],
    }
}

/// Sentences with slots in braces.
const PATTERNS: [&str; 24] = [
    "{who} {deed} {thing} {where}.",
    "{time}, {who} walked to {place} and {deed} {thing}.",
    "{weather}, and {place} was {quality}.",
    "{who} believed that {view}.",
    "Nobody in {place} knew why {who} had {deed} {thing}.",
    "{where}, {noise}, but {who} did not look up.",
    "It was {quality} {where}, and {noise}.",
    "{who} told {who} that {view}.",
    "{time}, the road to {place} was {quality}.",
    "{who} kept {thing} {where} until somebody {deed} it.",
    "Most people in {place} agreed that {view}.",
    "{weather}; {who} stayed at home and {deed} {thing}.",
    "Did {who} really think that {view}?",
    "There was {thing} {where}, and {who} wondered who had left it there.",
    "{who} came back from {place} {time} with {thing}.",
    "In {place} it was always {quality} {time}.",
    "{who} laughed, because {noise} just then.",
    "After supper {who} and {who} talked about {place}.",
    "{weather} when {who} reached {place}.",
    "They said that {who} once {deed} {thing} {time}.",
    "If {view}, {who} would go to {place} again.",
    "{who} had never been to {place}, though it was not far.",
    "{time} {noise}, and {place} woke up slowly.",
    "What a {quality} day it was {where}!",
];

/// At least `n` words in paragraphs; the same for the same seed, and longer
/// texts begin as shorter ones do.
pub fn prose(seed: u64, n: usize) -> String {
    let mut rng = Rng::new(seed);
    let mut text = String::new();
    let (mut count, mut left_in_paragraph) = (0, 0);
    let mut last = PATTERNS.len();
    while count < n {
        // No pattern twice in a row.
        let pattern = loop {
            let pattern = rng.below(PATTERNS.len());
            if pattern != last {
                break pattern;
            }
        };
        last = pattern;
        let sentence = fill(PATTERNS[pattern], &mut rng);
        count += sentence.split_whitespace().count();
        if !text.is_empty() {
            text += if left_in_paragraph == 0 { "\n\n" } else { " " };
        }
        if left_in_paragraph == 0 {
            left_in_paragraph = 4 + rng.below(5);
        }
        left_in_paragraph -= 1;
        text += &sentence;
    }
    text
}

/// Fills the slots of a pattern and begins it with a capital letter.
fn fill(pattern: &str, rng: &mut Rng) -> String {
    let mut sentence = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').unwrap_or((after, ""));
        let choices = words(slot);
        sentence += before;
        sentence += choices.get(rng.below(choices.len())).copied().unwrap_or(slot);
        rest = after;
    }
    sentence += rest;
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_known() {
        for pattern in PATTERNS {
            for slot in pattern.split('{').skip(1) {
                let slot = slot.split_once('}').expect("a closing brace").0;
                assert!(words(slot).len() >= 9, "{slot}");
            }
        }
    }
}
