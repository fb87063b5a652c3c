//! Opening the file: made, locked, checked, brought to the latest format; set aside when it is broken.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::error::LedgerError;
use super::schema::{self, RECORD_TABLES};
use crate::types::time::Wall;

/// A larger file is checked in its tables of records only; `fusebox ledger check` checks all of it.
const CHECK_WHOLE: u64 = 64 << 20;
/// How long the writer waits for somebody who reads the file with a lock.
const BUSY: Duration = Duration::from_secs(1);

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Whether the ledger begins with nothing.
    pub fresh: bool,
    /// The format that it had, when that was an earlier one.
    pub migrated_from: Option<u32>,
    /// Where a broken file was put; nothing of it was deleted.
    pub set_aside: Option<PathBuf>,
    /// Tables of a broken file that were whole and are carried over.
    pub carried: Vec<&'static str>,
    /// Why it cannot be written yet; records are kept in memory until it can.
    pub degraded: Option<std::sync::Arc<str>>,
}

/// The open file and the lock that keeps others from writing.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) connection: Connection,
    /// Held for as long as the file is open.
    _lock: File,
    device_and_inode: (u64, u64),
}

impl OpenFile {
    /// Opens the file at `path`, which is made when it is missing. A file that is known to be broken is set aside
    /// without a look.
    pub(super) fn open(path: &Path, now: Wall, broken: bool) -> Result<(Self, Opened), LedgerError> {
        let directory = directory_of(path);
        make_directory(&directory)?;
        let lock = lock(path)?;
        let mut opened = Opened::default();
        let mut aside = None;
        if !broken {
            make_file(path, &directory)?;
            match judge(path) {
                Ok(()) => {}
                Err(e) if e.is_corruption() => aside = Some(e),
                Err(e) => return Err(e),
            }
        }
        if broken || aside.is_some() {
            if let Some(why) = aside {
                tracing::error!(path = %path.display(), error = %why, "the ledger is broken");
            }
            opened.set_aside = set_aside(path, now)?;
            make_file(path, &directory)?;
        }
        let (connection, was) = ready(path)?;
        let device_and_inode = identity(path)?;
        let mut file = Self {
            connection,
            _lock: lock,
            device_and_inode,
        };
        opened.fresh = was == 0;
        opened.migrated_from = (1..schema::LATEST).contains(&was).then_some(was);
        if let Some(aside) = &opened.set_aside {
            opened.carried = carry_over(&mut file.connection, aside);
        }
        Ok((file, opened))
    }

    /// Whether `path` still leads to this file.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        identity(path).is_ok_and(|found| found == self.device_and_inode)
    }
}

/// A connection that only reads, to a file that is a ledger.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, LedgerError> {
    if !path.is_file() {
        return Err(LedgerError::Missing {
            path: path.to_owned(),
        });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(LedgerError::sql("open it"))?;
    connection
        .busy_timeout(5 * BUSY)
        .map_err(LedgerError::sql("open it"))?;
    known(path, &connection)?;
    Ok(connection)
}

/// The format of the file; refuses one that is not ours or too new.
fn known(path: &Path, connection: &Connection) -> Result<u32, LedgerError> {
    let read = LedgerError::sql("read it");
    let found = schema::version(connection).map_err(&read)?;
    if found > schema::LATEST {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found,
            known: schema::LATEST,
        });
    }
    let count = |what: &str| -> Result<u32, LedgerError> {
        let sql = format!("SELECT count(*) FROM sqlite_schema WHERE {what}");
        connection.query_row(&sql, [], |row| row.get(0)).map_err(&read)
    };
    if count("true")? > 0 && count("name IN ('incidents', 'state')")? < 2 {
        return Err(LedgerError::Foreign {
            path: path.to_owned(),
        });
    }
    Ok(found)
}

/// Looks at the file without changing it: refuses what is not ours, finds what is broken.
fn judge(path: &Path) -> Result<(), LedgerError> {
    let size = fs::metadata(path).map_err(io_error(path, "look at it"))?.len();
    if size == 0 {
        return Ok(());
    }
    check_head(path)?;
    let connection = open_to_read(path)?;
    if size <= CHECK_WHOLE {
        return check(&connection, "PRAGMA quick_check(1)", "quick_check");
    }
    for table in RECORD_TABLES {
        check_table(&connection, table)?;
    }
    Ok(())
}

/// What SQLite takes for an empty or a read-only file is a broken one when we made it.
fn check_head(path: &Path) -> Result<(), LedgerError> {
    let mut head = [0; 512];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(source) => return Err(io_error(path, "read it")(source)),
        // The versions needed to write and to read.
        Ok(()) if matches!(head.get(18..20), Some([1 | 2, 1 | 2])) => return Ok(()),
        Ok(()) => {}
    }
    Err(LedgerError::Damaged {
        table: "head",
        what: "it is not that of a database".to_owned(),
    })
}

fn check_table(connection: &Connection, table: &'static str) -> Result<(), LedgerError> {
    check(connection, &format!("PRAGMA quick_check('{table}')"), table)
}

fn check(connection: &Connection, sql: &str, table: &'static str) -> Result<(), LedgerError> {
    let said: String = connection
        .query_row(sql, [], |row| row.get(0))
        .map_err(LedgerError::sql("check it"))?;
    if said == "ok" {
        Ok(())
    } else {
        Err(LedgerError::Damaged { table, what: said })
    }
}

/// A connection that writes, to a file in the latest format; and the format that it had, 0 for none.
fn ready(path: &Path) -> Result<(Connection, u32), LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let prepare = || -> rusqlite::Result<(Connection, u32)> {
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(64);
        let was = schema::version(&connection)?;
        // Only on a file without tables does this say anything; it has to come first.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -8192)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        // Kept at this size between checkpoints: room for records when the disk is full.
        connection.query_row("PRAGMA journal_size_limit = 4194304", [], |_| Ok(()))?;
        if was < schema::LATEST {
            schema::migrate(&mut connection, was)?;
        }
        Ok((connection, was))
    };
    prepare().map_err(LedgerError::sql("open it for writing"))
}

/// Copies what is whole of a broken file; nothing is lost by not being able to, the file stays.
fn carry_over(connection: &mut Connection, aside: &Path) -> Vec<&'static str> {
    let mut carried = Vec::new();
    let Ok(old) = open_to_read(aside) else {
        return carried;
    };
    let whole: Vec<_> = RECORD_TABLES
        .into_iter()
        .filter(|table| check_table(&old, table).is_ok())
        .collect();
    drop(old);
    let Some(name) = aside.to_str() else {
        return carried;
    };
    if connection.execute("ATTACH ? AS aside", [name]).is_err() {
        return carried;
    }
    for table in whole {
        // One statement is all or nothing.
        let sql = format!("INSERT OR IGNORE INTO main.\"{table}\" SELECT * FROM aside.\"{table}\"");
        if connection.execute(&sql, []).is_ok() {
            carried.push(table);
        }
    }
    connection.execute("DETACH aside", []).ok();
    carried
}

/// Renames the file and what belongs to it; `None` when there was none.
fn set_aside(path: &Path, now: Wall) -> Result<Option<PathBuf>, LedgerError> {
    let stamp: String = now
        .to_string()
        .chars()
        .filter(|c| !matches!(c, '-' | ':'))
        .collect();
    let mut to = with_suffix(path, &format!(".corrupt-{stamp}"));
    for n in 2..1000 {
        if fs::symlink_metadata(&to).is_err() {
            break;
        }
        to = with_suffix(path, &format!(".corrupt-{stamp}-{n}"));
    }
    let mut moved = None;
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&to, suffix));
        match fs::rename(&from, &to) {
            Ok(()) if suffix.is_empty() => moved = Some(to),
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(LedgerError::Io {
                    path: from,
                    what: "set it aside",
                    source,
                });
            }
        }
    }
    sync(&directory_of(path))?;
    if let Some(to) = &moved {
        tracing::error!(from = %path.display(), to = %to.display(), "the broken ledger was set aside; a new one begins");
    }
    Ok(moved)
}

fn make_directory(directory: &Path) -> Result<(), LedgerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io_error(directory, "make the directory"))
}

/// An empty file that only we may read, unless there is one.
fn make_file(path: &Path, directory: &Path) -> Result<(), LedgerError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => return Ok(()),
        Ok(_) => {
            return Err(LedgerError::Io {
                path: path.to_owned(),
                what: "use it as a ledger",
                source: io::Error::new(io::ErrorKind::InvalidInput, "no regular file"),
            });
        }
        Err(_) => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.sync_all())
        .map_err(io_error(path, "make it"))?;
    sync(directory)
}

/// Keeps other processes from writing for as long as the lock is held; a process that dies lets go of it.
fn lock(path: &Path) -> Result<File, LedgerError> {
    let name = with_suffix(path, ".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(io_error(&name, "make it"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(LedgerError::Io {
            path: name,
            what: "lock it",
            source,
        }),
    }
}

/// Makes what happened to the names in a directory durable.
fn sync(directory: &Path) -> Result<(), LedgerError> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(io_error(directory, "sync the directory"))
}

fn identity(path: &Path) -> Result<(u64, u64), LedgerError> {
    let found = fs::metadata(path).map_err(io_error(path, "look at it"))?;
    Ok((found.dev(), found.ino()))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

fn io_error<'a>(path: &'a Path, what: &'static str) -> impl Fn(io::Error) -> LedgerError + 'a {
    move |source| LedgerError::Io {
        path: path.to_owned(),
        what,
        source,
    }
}
