//! An observation as a compact row: names by number, numbers as short as they are, times to the last bit.

use std::sync::Arc;

use crate::types::observation::{IdentitySource, Observation, Outcome};
use crate::types::time::Wall;
use crate::types::usage::{Cost, Normalised, Usage, UsageSource};

/// The layout of the rows that are written; the first byte of each.
const LAYOUT: u8 = 1;

/// Turns a name into its number, where it has or gets one.
pub(super) trait Numbers {
    /// The number, from 1; `None` when it has to be written out.
    fn number(&mut self, name: &str) -> Option<u32>;
}

/// Turns a number into its name.
pub(super) trait Names {
    /// The name; `None` when there is no such number.
    fn name(&mut self, number: u32) -> Option<Arc<str>>;
}

/// Writes `observation` to the end of `out`. Its time is kept by the row's id where `timed`, else in the row.
pub(super) fn pack(observation: &Observation, timed: bool, numbers: &mut dyn Numbers, out: &mut Vec<u8>) {
    // Taken apart completely, so that a new field breaks the build here and not a backtest later.
    let Observation {
        request_id,
        time,
        agent,
        agent_source,
        agent_version,
        execution,
        execution_source,
        upstream,
        provider,
        api,
        model_requested,
        model_served,
        status,
        stream,
        outcome,
        usage_source,
        usage,
        normalised,
        finish_reason,
        finish_detail,
        error_type,
        error_code,
        tool_calls,
        output_chars,
        ttfb_ms,
        ttft_ms,
        duration_ms,
        overhead_us,
        cost_usd,
        actions,
        may_continue,
        ended: _,
    } = observation;
    let alone = execution.as_str() == request_id.as_str();
    let flags = u8::from(*stream)
        | u8::from(alone) << 1
        | u8::from(!timed) << 2
        | u8::from(!actions.is_empty()) << 3
        | u8::from(finish_detail.is_some()) << 4
        | u8::from(*may_continue) << 5;
    let sources = source_code(*agent_source) | source_code(*execution_source) << 4;
    let ends = outcome_code(*outcome) | usage_code(*usage_source) << 4;
    out.extend_from_slice(&[LAYOUT, flags, sources, ends]);
    if !timed {
        out.extend_from_slice(&time.unix_millis().to_le_bytes());
    }
    put_text(request_id.as_str(), out);
    if !alone {
        put_text(execution.as_str(), out);
    }
    let mut name = |name: Option<&str>| put_name(name, numbers, out);
    name(Some(agent.as_str()));
    name(agent_version.as_ref().map(|v| v.as_str()));
    name(Some(upstream.as_str()));
    name(Some(provider));
    name(Some(api));
    name(model_requested.as_ref().map(|m| m.as_str()));
    name(model_served.as_ref().map(|m| m.as_str()));
    name(finish_reason.as_deref());
    name(error_type.as_deref());
    name(error_code.as_deref());
    put_number(tool_calls.len() as u64, out);
    for tool in tool_calls {
        put_name(tool.as_deref(), numbers, out);
    }
    if let Some(detail) = finish_detail {
        put_text(detail, out);
    }
    let counts = counts_of(usage, normalised, *output_chars, *cost_usd);
    let mut mask = 0_u64;
    for (i, count) in counts.iter().enumerate() {
        mask |= u64::from(count.is_some()) << i;
    }
    mask |= u64::from(ttfb_ms.is_some()) << counts.len();
    mask |= u64::from(ttft_ms.is_some()) << (counts.len() + 1);
    put_number(mask, out);
    for count in counts.into_iter().flatten() {
        put_number(count, out);
    }
    for millis in [*ttfb_ms, *ttft_ms, Some(*duration_ms)].into_iter().flatten() {
        put_millis(millis, out);
    }
    put_number(u64::from(*status), out);
    put_number(*overhead_us, out);
    if !actions.is_empty() {
        // Rare, and open to new kinds: as the line has it.
        put_text(&serde_json::to_string(actions).unwrap_or_default(), out);
    }
}

/// Reads what [`pack`] wrote; `Err` says what does not make sense.
pub(super) fn unpack(row: &[u8], timed: Wall, names: &mut dyn Names) -> Result<Observation, &'static str> {
    let mut row = Cursor(row);
    let [layout, flags, sources, ends] = row.array().ok_or("its head")?;
    if layout != LAYOUT {
        return Err("its layout");
    }
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let time = if flag(2) {
        Wall::from_unix_millis(i64::from_le_bytes(row.array().ok_or("its time")?))
    } else {
        timed
    };
    let request_id = crate::types::ids::RequestId::from(row.text().ok_or("its request id")?);
    let execution = if flag(1) {
        request_id.as_execution()
    } else {
        row.text().ok_or("its execution")?.into()
    };
    let mut name = || row.name(names);
    let agent = name()?.ok_or("its agent")?.into();
    let agent_version = name()?.map(Into::into);
    let upstream = name()?.ok_or("its upstream")?.into();
    let provider = name()?.ok_or("its provider")?;
    let api = name()?.ok_or("its API")?.as_ref().to_owned().into();
    let model_requested = name()?.map(Into::into);
    let model_served = name()?.map(Into::into);
    let owned = |name: Option<Arc<str>>| name.map(|n| n.as_ref().to_owned());
    let finish_reason = owned(name()?);
    let error_type = owned(name()?);
    let error_code = owned(name()?);
    let tools = row.number().ok_or("its tool calls")?;
    let mut tool_calls = Vec::new();
    for _ in 0..tools {
        tool_calls.push(owned(row.name(names)?));
    }
    let finish_detail = if flag(4) {
        Some(row.text().ok_or("its finish detail")?.to_owned())
    } else {
        None
    };
    let mask = row.number().ok_or("its counts")?;
    let mut counts = [None; COUNTS];
    for (i, count) in counts.iter_mut().enumerate() {
        if mask >> i & 1 == 1 {
            *count = Some(row.number().ok_or("its counts")?);
        }
    }
    let mut millis = |given: bool| {
        if given {
            row.millis().map(Some).ok_or("its times")
        } else {
            Ok(None)
        }
    };
    let ttfb_ms = millis(mask >> COUNTS & 1 == 1)?;
    let ttft_ms = millis(mask >> (COUNTS + 1) & 1 == 1)?;
    let duration_ms = millis(true)?.unwrap_or_default();
    let status = row
        .number()
        .and_then(|n| u16::try_from(n).ok())
        .ok_or("its status")?;
    let overhead_us = row.number().ok_or("its overhead")?;
    let actions = if flag(3) {
        let text = row.text().ok_or("its actions")?;
        serde_json::from_str(text).map_err(|_| "its actions")?
    } else {
        Vec::new()
    };
    let (usage, normalised, output_chars, cost_usd) = counts_to(counts);
    Ok(Observation {
        request_id,
        time,
        agent,
        agent_source: source_of(sources & 15).ok_or("where its agent was read")?,
        agent_version,
        execution,
        execution_source: source_of(sources >> 4).ok_or("where its execution was read")?,
        upstream,
        provider,
        api,
        model_requested,
        model_served,
        status,
        stream: flag(0),
        outcome: outcome_of(ends & 15).ok_or("its outcome")?,
        usage_source: usage_of(ends >> 4).ok_or("how its usage is known")?,
        usage,
        normalised,
        finish_reason,
        finish_detail,
        error_type,
        error_code,
        tool_calls,
        output_chars,
        ttfb_ms,
        ttft_ms,
        duration_ms,
        overhead_us,
        cost_usd,
        actions,
        may_continue: flag(5),
        ended: crate::types::time::Mono::ZERO,
    })
}

const COUNTS: usize = 15;

fn counts_of(
    usage: &Usage,
    normalised: &Normalised,
    output_chars: Option<u64>,
    cost: Option<Cost>,
) -> [Option<u64>; COUNTS] {
    let Usage {
        input_tokens,
        output_tokens,
        total_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        input_audio_tokens,
        output_audio_tokens,
        tool_use_input_tokens,
        header_input_tokens,
        header_output_tokens,
    } = *usage;
    let Normalised {
        input_total,
        output_total,
    } = *normalised;
    [
        input_tokens,
        output_tokens,
        total_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        input_audio_tokens,
        output_audio_tokens,
        tool_use_input_tokens,
        header_input_tokens,
        header_output_tokens,
        input_total,
        output_total,
        output_chars,
        cost.map(Cost::nanos),
    ]
}

fn counts_to(counts: [Option<u64>; COUNTS]) -> (Usage, Normalised, Option<u64>, Option<Cost>) {
    let [
        input_tokens,
        output_tokens,
        total_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        input_audio_tokens,
        output_audio_tokens,
        tool_use_input_tokens,
        header_input_tokens,
        header_output_tokens,
        input_total,
        output_total,
        output_chars,
        cost,
    ] = counts;
    let usage = Usage {
        input_tokens,
        output_tokens,
        total_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        input_audio_tokens,
        output_audio_tokens,
        tool_use_input_tokens,
        header_input_tokens,
        header_output_tokens,
    };
    let normalised = Normalised {
        input_total,
        output_total,
    };
    (usage, normalised, output_chars, cost.map(Cost::from_nanos))
}

const SOURCES: [IdentitySource; 10] = [
    IdentitySource::Path,
    IdentitySource::Header,
    IdentitySource::Baggage,
    IdentitySource::Body,
    IdentitySource::Config,
    IdentitySource::ApiKey,
    IdentitySource::Trace,
    IdentitySource::Chain,
    IdentitySource::Default,
    IdentitySource::Exchange,
];

fn source_code(source: IdentitySource) -> u8 {
    match source {
        IdentitySource::Path => 0,
        IdentitySource::Header => 1,
        IdentitySource::Baggage => 2,
        IdentitySource::Body => 3,
        IdentitySource::Config => 4,
        IdentitySource::ApiKey => 5,
        IdentitySource::Trace => 6,
        IdentitySource::Chain => 7,
        IdentitySource::Default => 8,
        IdentitySource::Exchange => 9,
    }
}

fn source_of(code: u8) -> Option<IdentitySource> {
    SOURCES.get(usize::from(code)).copied()
}

const OUTCOMES: [Outcome; 7] = [
    Outcome::Complete,
    Outcome::Truncated,
    Outcome::ClientAbort,
    Outcome::Cut,
    Outcome::Timeout,
    Outcome::UpstreamError,
    Outcome::Refused,
];

fn outcome_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Complete => 0,
        Outcome::Truncated => 1,
        Outcome::ClientAbort => 2,
        Outcome::Cut => 3,
        Outcome::Timeout => 4,
        Outcome::UpstreamError => 5,
        Outcome::Refused => 6,
    }
}

fn outcome_of(code: u8) -> Option<Outcome> {
    OUTCOMES.get(usize::from(code)).copied()
}

const USAGES: [UsageSource; 4] = [
    UsageSource::Reported,
    UsageSource::Partial,
    UsageSource::Estimated,
    UsageSource::None,
];

fn usage_code(source: UsageSource) -> u8 {
    match source {
        UsageSource::Reported => 0,
        UsageSource::Partial => 1,
        UsageSource::Estimated => 2,
        UsageSource::None => 3,
    }
}

fn usage_of(code: u8) -> Option<UsageSource> {
    USAGES.get(usize::from(code)).copied()
}

/// Seven bits a byte, lowest first.
fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_number(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

/// Nothing as 0, a number as twice itself, a written-out name as twice its length and one.
fn put_name(name: Option<&str>, numbers: &mut dyn Numbers, out: &mut Vec<u8>) {
    let Some(name) = name else {
        return out.push(0);
    };
    match numbers.number(name) {
        Some(number) => put_number(u64::from(number) << 1, out),
        None => {
            put_number((name.len() as u64) << 1 | 1, out);
            out.extend_from_slice(name.as_bytes());
        }
    }
}

/// Whole microseconds where that is exact, else all bits.
fn put_millis(millis: f64, out: &mut Vec<u8>) {
    let micros = (millis * 1e3).round();
    if (0.0..1e15).contains(&micros) && (micros / 1e3).to_bits() == millis.to_bits() {
        put_number((micros as u64) << 1, out);
    } else {
        put_number(1, out);
        out.extend_from_slice(&millis.to_bits().to_le_bytes());
    }
}

/// What is left of a row.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    #[inline]
    fn number(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        if *first < 0x80 {
            return Some(u64::from(*first));
        }
        let mut number = u64::from(*first & 0x7f);
        let mut shift = 7;
        loop {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if shift > 63 {
                return None;
            }
            number |= u64::from(*byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(number);
            }
            shift += 7;
        }
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn name(&mut self, names: &mut dyn Names) -> Result<Option<Arc<str>>, &'static str> {
        match self.number().ok_or("a name")? {
            0 => Ok(None),
            written if written & 1 == 1 => {
                let text = self.take(written >> 1).and_then(|t| std::str::from_utf8(t).ok());
                Ok(Some(text.ok_or("a name")?.into()))
            }
            numbered => {
                let number = u32::try_from(numbered >> 1).map_err(|_| "a name")?;
                names.name(number).map(Some).ok_or("a name without text")
            }
        }
    }

    fn millis(&mut self) -> Option<f64> {
        match self.number()? {
            1 => Some(f64::from_bits(u64::from_le_bytes(self.array()?))),
            even if even & 1 == 0 => Some((even >> 1) as f64 / 1e3),
            _ => None,
        }
    }
}
