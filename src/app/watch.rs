//! Watches directories: certificates always, the configuration when it asks for it.
//!
//! Directories and not files, since both editors and Kubernetes put a new file (or a new `..data` link) in the place
//! of the old one, and a watch on the old file would see nothing any more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Source;
use crate::config::Wiring;
use crate::control::handle::Handle;
use crate::proxy::Certificate;

/// How long a directory must be quiet before its files are read: a swap is several events.
const QUIET: Duration = Duration::from_millis(150);
/// How long a configuration file may be missing before that counts as a change: some swaps take the old one away first.
const MISSING: Duration = Duration::from_secs(2);
/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Starts watching, when there is something to watch. That nothing can be watched is said and is no reason to stop.
pub(super) fn start(
    wiring: &Wiring,
    source: &Source,
    certificates: Vec<Option<Arc<Certificate>>>,
    handle: Handle,
    stop: CancellationToken,
) {
    let configuration = match source {
        Source::File(path, _) if wiring.watch => Some(path.clone()),
        _ => None,
    };
    let mut directories = BTreeSet::new();
    directories.extend(configuration.as_deref().map(directory));
    for tls in wiring.listeners.iter().filter_map(|l| l.tls.as_ref()) {
        directories.insert(directory(&tls.certificate_file));
        directories.insert(directory(&tls.key_file));
    }
    if directories.is_empty() {
        return;
    }
    let (changed, changes) = mpsc::channel(1);
    match watch(&directories, changed) {
        Err(e) => tracing::warn!(error = %e, "cannot watch files; send SIGHUP after a change"),
        Ok(watcher) => {
            tokio::spawn(follow(
                watcher,
                changes,
                configuration,
                certificates,
                handle,
                stop,
            ));
        }
    }
}

fn watch(
    directories: &BTreeSet<PathBuf>,
    changed: mpsc::Sender<()>,
) -> Result<RecommendedWatcher, notify::Error> {
    let mut watcher = notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
        // Reading a file is an event as well; it would make us read for ever.
        if event.map_or(true, |e| !e.kind.is_access()) {
            // A full channel means that somebody is told already.
            changed.try_send(()).ok();
        }
    })?;
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

async fn follow(
    watcher: RecommendedWatcher,
    mut changes: mpsc::Receiver<()>,
    configuration: Option<PathBuf>,
    certificates: Vec<Option<Arc<Certificate>>>,
    handle: Handle,
    stop: CancellationToken,
) {
    let _watching = watcher;
    let mut last = configuration.as_deref().and_then(content);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.recv() => if change.is_none() { return },
        }
        sleep(QUIET).await;
        changes.try_recv().ok();
        for certificate in certificates.iter().flatten() {
            match certificate.refresh() {
                Ok(true) => tracing::info!("listener certificate read anew"),
                Ok(false) => {}
                Err(e) => {
                    tracing::error!(error = %e, "new listener certificate cannot be used; the old one stays")
                }
            }
        }
        let now = match &configuration {
            None => continue,
            Some(path) => settled(path, &stop).await,
        };
        if now != last && !stop.is_cancelled() {
            last = now;
            handle.reload().await.ok();
        }
    }
}

/// What a file holds, once it is there; `None` when it stays away.
async fn settled(path: &Path, stop: &CancellationToken) -> Option<Vec<u8>> {
    let there = async {
        loop {
            match content(path) {
                Some(content) => return content,
                None => sleep(LOOK).await,
            }
        }
    };
    tokio::select! {
        found = timeout(MISSING, there) => found.ok(),
        () = stop.cancelled() => None,
    }
}

/// What a file holds; `None` when it cannot be read, which during a swap is normal.
fn content(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
