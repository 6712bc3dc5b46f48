//! What the kernels must reach, each goal a fraction of something else that the same
//! run measured on the same card.

use crate::kv::Order;
use crate::roofs::Roofs;
use crate::row::Row;
use crate::workloads::{
    LAYERED, PREFILL_TWIN, PREFILLS, decode_cases, decode_name, has_twin, layers_name,
    one_layer_name, prefill_name,
};
use kvfold::codec::{Codec, KvFormat};
use serde_json::{Value, json};
use std::fmt;

/// Tokens (batch × context) from which the goals of decode count: below, launches do.
const MANY: usize = 512 << 10;

/// A goal and what was measured.
pub struct Goal {
    what: &'static str,
    bound: Bound,
    /// The value furthest from the goal, or nearest for [`Bound::Best`], and its cell.
    measured: Option<(f64, String)>,
    unit: &'static str,
}

#[derive(Clone, Copy)]
pub enum Bound {
    /// Every value is at least this.
    AtLeast(f64),
    /// The best value is at least this.
    Best(f64),
    /// Every value is at most this.
    AtMost(f64),
}

impl Goal {
    /// A goal, and the values that it is about.
    pub fn new(
        what: &'static str,
        bound: Bound,
        unit: &'static str,
        values: impl Iterator<Item = (f64, String)>,
    ) -> Self {
        let by_value = |a: &(f64, String), b: &(f64, String)| a.0.total_cmp(&b.0);
        let measured = match bound {
            Bound::AtLeast(_) => values.min_by(by_value),
            Bound::Best(_) | Bound::AtMost(_) => values.max_by(by_value),
        };
        Self { what, bound, measured, unit }
    }

    /// None if no cell of it was measured.
    pub fn reached(&self) -> Option<bool> {
        let value = self.measured.as_ref()?.0;
        Some(match self.bound {
            Bound::AtLeast(least) | Bound::Best(least) => value >= least,
            Bound::AtMost(most) => value <= most,
        })
    }

    pub fn json(&self) -> Value {
        let (value, cell) = self.measured.clone().unzip();
        json!({
            "goal": self.what,
            "unit": self.unit,
            "value": value,
            "cell": cell,
            "reached": self.reached(),
        })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((value, cell)) = &self.measured else {
            return write!(f, "not measured  {}", self.what);
        };
        let verdict = if self.reached() == Some(true) { "reached" } else { "NOT REACHED" };
        write!(f, "{verdict:<13} {}: {value:.2}{} ({cell})", self.what, self.unit)
    }
}

/// All goals, from the rows of a run.
pub fn goals(rows: &[Row], roofs: &Roofs) -> Vec<Goal> {
    let row = |name: &str| rows.iter().find(|row| row.name == name);
    let seconds = |name: &str| row(name).and_then(Row::seconds);
    let decode = |(heads, d, b, context): (&str, usize, usize, usize), format, order| {
        format!("decode/{}", decode_name(heads, d, format, b, context, order))
    };
    let [f16, kivi2, kivi4, kf2] =
        [Codec::F16, Codec::Kivi2, Codec::Kivi4, Codec::Kf2].map(KvFormat::uniform);
    let many = || decode_cases().filter(|(_, _, batch, context)| batch * context >= MANY);
    let bandwidth = many().filter_map(|case| {
        let name = decode(case, f16, Order::Shuffled);
        let row = row(&name)?;
        Some((100.0 * row.bytes as f64 / row.seconds()? / roofs.read, name))
    });
    let over_16_bit = |format| {
        many().filter_map(move |case| {
            let name = decode(case, format, Order::Shuffled);
            Some((seconds(&decode(case, f16, Order::Shuffled))? / seconds(&name)?, name))
        })
    };
    let prefills = |d: usize| {
        PREFILLS.into_iter().filter_map(move |tokens| {
            let name = format!("prefill/{}", prefill_name(d, tokens, Order::Shuffled));
            let row = row(&name)?;
            Some((row.flops as f64 / row.seconds()?, name))
        })
    };
    let tera = |(rate, name): (f64, String)| (rate / 1e12, name);
    let (matrix, _) = roofs.matrix();
    let share = |(rate, name): (f64, String)| (100.0 * rate / matrix, name);
    let loss = |slower: String, faster: String| {
        Some((100.0 * (seconds(&slower)? / seconds(&faster)? - 1.0), slower))
    };
    let decode_loss =
        decode_cases().filter(|&(h, d, b, c)| has_twin(h, d, b, c)).flat_map(|case| {
            crate::workloads::FORMATS.into_iter().filter_map(move |format| {
                loss(decode(case, format, Order::Shuffled), decode(case, format, Order::Contiguous))
            })
        });
    let prefill_loss = [128, 64].into_iter().filter_map(|d| {
        let name = |order| format!("prefill/{}", prefill_name(d, PREFILL_TWIN, order));
        loss(name(Order::Shuffled), name(Order::Contiguous))
    });
    let layers_loss = LAYERED.into_iter().filter_map(|format| {
        let of = |name| format!("decode/{name}");
        loss(of(layers_name(format)), of(one_layer_name(format)))
    });
    vec![
        Goal::new(
            "16-bit decode >= 96 % of the read-only reduction, from 512k tokens",
            Bound::AtLeast(96.0),
            " %",
            bandwidth,
        ),
        Goal::new(
            "KIVI-2 decode >= 4.5 x 16-bit, from 512k tokens",
            Bound::AtLeast(4.5),
            " x",
            over_16_bit(kivi2),
        ),
        Goal::new(
            "KIVI-4 decode >= 2.7 x 16-bit, from 512k tokens",
            Bound::AtLeast(2.7),
            " x",
            over_16_bit(kivi4),
        ),
        Goal::new(
            "kf3.2 decode >= 4.5 x 16-bit, from 512k tokens",
            Bound::AtLeast(4.5),
            " x",
            over_16_bit(KvFormat::new(Codec::Kf3, Codec::Kf2)),
        ),
        Goal::new(
            "kf2 decode >= 5.4 x 16-bit, from 512k tokens",
            Bound::AtLeast(5.4),
            " x",
            over_16_bit(kf2),
        ),
        Goal::new(
            "causal prefill, d128 >= 440 TFLOP/s",
            Bound::Best(440.0),
            " TFLOP/s",
            prefills(128).map(tera),
        ),
        Goal::new(
            "causal prefill, d128 >= 55 % of the matrix rate",
            Bound::Best(55.0),
            " %",
            prefills(128).map(share),
        ),
        Goal::new(
            "shuffled pages at most 3 % slower than contiguous",
            Bound::AtMost(3.0),
            " %",
            decode_loss.chain(prefill_loss),
        ),
        Goal::new(
            "decode from blocks of 32 layers at most 3 % slower than from those of one",
            Bound::AtMost(3.0),
            " %",
            layers_loss,
        ),
    ]
}
