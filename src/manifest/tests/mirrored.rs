//! The copy on local disk: complete when it has to be, small, and never wrong.

use super::*;

fn with_mirror(store: &Store, dir: &Path) -> ManifestLog {
    ManifestLog::new(Some(store.clone()), Some(dir.to_owned()))
}

fn alone(dir: &Path) -> ManifestLog {
    ManifestLog::new(None, Some(dir.to_owned()))
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = dir.join(names::chain_dir(&id()));
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
}

#[tokio::test]
async fn the_mirror_alone_gives_the_same_chain_after_every_commit() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    let log = with_mirror(&store, dir.path());
    let mut chain = Chain::empty(id());
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap(), None);
    for version in (1..=70).chain([127, 128, 129, 300]) {
        grow(&log, &mut chain, version).await;
        let mirrored = alone(dir.path()).load_mirror(&id()).unwrap().unwrap();
        assert_eq!(mirrored, chain, "after {version} commits");
    }
    assert_eq!(alone(dir.path()).mirror_chains().unwrap(), [id()]);
}

#[tokio::test]
async fn the_mirror_holds_the_stores_bytes_and_only_what_is_needed() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    let mut chain = Chain::empty(id());
    grow(&with_mirror(&store, dir.path()), &mut chain, 650).await;
    let files = files(dir.path());
    // The checkpoint of 640: three pages and a root; the deltas behind it.
    assert_eq!(files.len(), 3 + 1 + 10, "{:?}", files.keys());
    for (name, bytes) in files {
        let key = name.parse::<ManifestName>().unwrap().key(&id());
        assert_eq!(store.get(&key, 1 << 20).await.unwrap(), bytes, "{name}");
    }
}

#[tokio::test]
async fn what_others_committed_is_mirrored_when_it_is_learned() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    let theirs = grown(&store, 130).await;
    let log = with_mirror(&store, dir.path());
    let mut ours = log.load(&id()).await.unwrap();
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap().unwrap(), theirs);
    let mut theirs = theirs;
    grow(&reader(&store), &mut theirs, 135).await;
    let next = theirs.end_offset().unwrap();
    let outcome = log.commit(&mut ours, add(next - 50)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Conflict);
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap().unwrap(), theirs);
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn a_chain_from_the_mirror_goes_on_with_one_request() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    let mut written = Chain::empty(id());
    grow(&with_mirror(&store, dir.path()), &mut written, 100).await;
    let log = with_mirror(&store, dir.path());
    let mut chain = log.load_mirror(&id()).unwrap().unwrap();
    let before = store.counters().snapshot().requests();
    assert_eq!(log.commit(&mut chain, add(1000)).await.unwrap(), CommitOutcome::Committed);
    assert_eq!(store.counters().snapshot().requests() - before, 1);
    grow(&log, &mut chain, 200).await;
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap().unwrap(), chain);
}

#[tokio::test]
async fn no_flipped_byte_in_the_mirror_is_believed() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    let mut chain = Chain::empty(id());
    grow(&with_mirror(&store, dir.path()), &mut chain, 66).await;
    let chain_dir = dir.path().join(names::chain_dir(&id()));
    for (name, bytes) in files(dir.path()) {
        for at in (0..bytes.len() - 1).step_by(1 + bytes.len() / 80) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            std::fs::write(chain_dir.join(&name), bad).unwrap();
            match alone(dir.path()).load_mirror(&id()) {
                Ok(loaded) => assert_eq!(loaded.unwrap(), chain, "{name}, byte {at}"),
                Err(error) => assert!(error.is_damage(), "{name}, byte {at}: {error}"),
            }
        }
        std::fs::write(chain_dir.join(&name), bytes).unwrap();
    }
}

#[tokio::test]
async fn a_mirror_that_cannot_be_written_fails_the_commit() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    // Within one millisecond the second try would be the same document, and so be taken for the first: also right.
    let ticks = std::sync::atomic::AtomicU64::new(0);
    let clock = Clock::from_fn(move || {
        let ms = ticks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms)
    });
    let log = ManifestLog::with_clock(Some(store.clone()), Some(dir.path().to_owned()), clock);
    let mut chain = Chain::empty(id());
    grow(&log, &mut chain, 1).await;
    // A directory stands where the next version's file should go.
    let in_the_way = dir.path().join(names::chain_dir(&id())).join(format!("{:020}", 2));
    std::fs::create_dir(&in_the_way).unwrap();
    let error = log.commit(&mut chain, add(10)).await.unwrap_err();
    assert!(matches!(error, ManifestError::Mirror { .. }), "{error}");
    assert_eq!(chain.version(), 1, "what is not durable here does not count");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(log.commit(&mut chain, add(10)).await.unwrap(), CommitOutcome::Conflict);
    assert_eq!(chain.version(), 2);
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap().unwrap(), chain);
}

#[tokio::test]
async fn leftovers_of_a_crash_in_the_mirror_are_not_versions() {
    let (store, dir) = (memory(), tempfile::tempdir().unwrap());
    let mut chain = Chain::empty(id());
    grow(&with_mirror(&store, dir.path()), &mut chain, 3).await;
    let chain_dir = dir.path().join(names::chain_dir(&id()));
    std::fs::write(chain_dir.join(".tmp-00000000000000000004"), "half").unwrap();
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap().unwrap(), chain);
    // A version behind one that is not there was never acknowledged.
    let third = chain_dir.join(format!("{:020}", 3));
    std::fs::rename(&third, chain_dir.join(format!("{:020}", 5))).unwrap();
    assert_eq!(alone(dir.path()).load_mirror(&id()).unwrap().unwrap().version(), 2);
}
