//! Where recorded observations come from: a ledger, or lines read by several threads and put in order again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, available_parallelism};

use super::line::{self, Texts};
use crate::store::{ObservationFilter, Reader};
use crate::types::observation::Observation;
use crate::types::time::Wall;

/// Observations handed on at a time.
const BATCH: usize = 1_024;
/// Bytes of lines that one thread reads at a time.
const BLOCK: usize = 512 * 1024;
/// Longest line.
const LONGEST: usize = 16 << 20;
/// Batches that wait between two threads.
const WAITING: usize = 4;
/// What a ledger begins with.
const SQLITE: &[u8] = b"SQLite format 3\0";

/// Observations in the order of the record, and how far the reading has come.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The observations.
    pub(super) observations: Vec<Observation>,
    /// Bytes (of lines) or rows (of a ledger) that they took.
    pub(super) read: u64,
}

/// What is read.
#[derive(Debug)]
pub(super) enum Source {
    /// A ledger.
    Ledger(PathBuf),
    /// A file of lines; `None` is standard input.
    Lines(Option<PathBuf>),
}

/// Which observations are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// Ended then or later.
    pub(super) from: Option<Wall>,
    /// Ended before.
    pub(super) until: Option<Wall>,
    /// Of this agent.
    pub(super) agent: Option<String>,
}

impl Wanted {
    fn takes(&self, o: &Observation) -> bool {
        self.from.is_none_or(|from| o.time >= from)
            && self.until.is_none_or(|until| o.time < until)
            && self.agent.as_ref().is_none_or(|agent| agent == o.agent.as_str())
    }
}

impl Source {
    /// Tells a ledger from lines.
    ///
    /// # Errors
    /// That it cannot be read, with the remedy.
    pub(super) fn of(path: &Path) -> Result<Self, String> {
        if path.as_os_str() == "-" {
            return Ok(Self::Lines(None));
        }
        let unreadable = |e: io::Error| {
            format!(
                "{}: cannot be read: {e}; give a ledger (`ledger.path`) or an observations file (`observations.file`)",
                path.display()
            )
        };
        let mut head = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(SQLITE.len() as u64)
            .read_to_end(&mut head)
            .map_err(unreadable)?;
        Ok(if head == SQLITE {
            Self::Ledger(path.to_owned())
        } else {
            Self::Lines(Some(path.to_owned()))
        })
    }

    /// How much there is to be read, in what [`Batch::read`] counts; `None` when that cannot be told.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Ledger(path) => {
                let info = Reader::open(path).ok()?.info().ok()?;
                info.rows
                    .iter()
                    .find(|(table, _)| *table == "observations")
                    .map(|(_, rows)| *rows)
            }
            Self::Lines(Some(path)) => path.metadata().ok().map(|m| m.len()),
            Self::Lines(None) => None,
        }
    }

    /// Reads all of it on threads of `scope`; batches come in order, and nothing comes after an error.
    pub(super) fn read<'scope>(
        self,
        wanted: Wanted,
        scope: &'scope Scope<'scope, '_>,
    ) -> Receiver<Result<Batch, String>> {
        let (to, from) = sync_channel(WAITING);
        match self {
            Self::Ledger(path) => {
                scope.spawn(move || ledger(&path, wanted, &to));
            }
            Self::Lines(path) => {
                scope.spawn(move || lines(path.as_deref(), &wanted, &to));
            }
        }
        from
    }
}

type To = SyncSender<Result<Batch, String>>;

fn ledger(path: &Path, wanted: Wanted, to: &To) {
    let reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(e) => return drop(to.send(Err(e.to_string()))),
    };
    let filter = ObservationFilter {
        from: wanted.from,
        until: wanted.until,
        agent: wanted.agent,
        execution: None,
    };
    let mut batch = Batch::default();
    for observation in reader.observations(filter) {
        match observation {
            Ok(observation) => batch.observations.push(observation),
            Err(e) => return drop(to.send(Err(e.to_string()))),
        }
        if batch.observations.len() == BATCH {
            batch.read = BATCH as u64;
            // Nobody listens any more: the replay is over.
            if to.send(Ok(std::mem::take(&mut batch))).is_err() {
                return;
            }
        }
    }
    batch.read = batch.observations.len() as u64;
    drop(to.send(Ok(batch)));
}

/// Whole lines, and the number of the first of them.
struct Block {
    first: u64,
    bytes: Vec<u8>,
}

/// Blocks of lines go to the readers in turn, and what they have read is taken from them in the same turn.
fn lines(path: Option<&Path>, wanted: &Wanted, to: &To) {
    let name = path.map_or_else(|| "standard input".to_owned(), |p| p.display().to_string());
    let readers = available_parallelism()
        .map_or(1, usize::from)
        .saturating_sub(1)
        .clamp(1, 8);
    std::thread::scope(|scope| {
        let mut blocks = Vec::new();
        let mut read = Vec::new();
        for _ in 0..readers {
            let (block_to, block_from) = sync_channel::<Block>(2);
            let (batch_to, batch_from) = sync_channel(2);
            let name = &name;
            scope.spawn(move || {
                let mut texts = Texts::default();
                for block in block_from {
                    if batch_to.send(parse(&block, name, wanted, &mut texts)).is_err() {
                        return;
                    }
                }
            });
            blocks.push(block_to);
            read.push(batch_from);
        }
        let (failed_to, failed) = sync_channel(1);
        let name = &name;
        scope.spawn(move || {
            if let Err(why) = split(path, &blocks) {
                drop(failed_to.send(format!("{name}: {why}")));
            }
        });
        for turn in read.iter().cycle() {
            // A reader whose turn it is and who has nothing more: all has been read.
            let Ok(batch) = turn.recv() else { break };
            let last = batch.is_err();
            if to.send(batch).is_err() || last {
                return;
            }
        }
        if let Ok(why) = failed.recv() {
            drop(to.send(Err(why)));
        }
    });
}

fn split(path: Option<&Path>, blocks: &[SyncSender<Block>]) -> Result<(), String> {
    let cannot = |e: io::Error| format!("cannot be read: {e}");
    let from: Box<dyn Read> = match path {
        Some(path) => Box::new(File::open(path).map_err(cannot)?),
        None => Box::new(io::stdin()),
    };
    let mut from = BufReader::with_capacity(BLOCK, from);
    let mut line = 1;
    for to in blocks.iter().cycle() {
        let mut bytes = Vec::with_capacity(BLOCK + BLOCK / 4);
        from.by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut bytes)
            .map_err(cannot)?;
        if bytes.is_empty() {
            break;
        }
        if bytes.last() != Some(&b'\n') {
            from.by_ref()
                .take(LONGEST as u64)
                .read_until(b'\n', &mut bytes)
                .map_err(cannot)?;
        }
        let lines = memchr::memchr_iter(b'\n', &bytes).count() as u64;
        let block = Block { first: line, bytes };
        line += lines;
        if to.send(block).is_err() {
            break;
        }
    }
    Ok(())
}

fn parse(block: &Block, name: &str, wanted: &Wanted, texts: &mut Texts) -> Result<Batch, String> {
    let mut batch = Batch {
        observations: Vec::with_capacity(block.bytes.len() / 600),
        read: block.bytes.len() as u64,
    };
    for (number, line) in (block.first..).zip(block.bytes.split(|b| *b == b'\n')) {
        match line::read(line, texts) {
            Ok(Some(observation)) if wanted.takes(&observation) => batch.observations.push(observation),
            Ok(_) => {}
            Err(why) => {
                return Err(format!(
                    "{name}:{number}: {why}; each line has to be an observation, as `fusebox schema observation` says"
                ));
            }
        }
    }
    Ok(batch)
}
