//! Opening the file: what it must be, and the steps from older schemas to the newest.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::OpenError;
use crate::seal::{SealingKey, sync_folder_of};

/// Steps forward, in order; the schema's number is how many were taken. What was released is not changed.
const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql")];

/// Marks the file as a store of hwm: `hwm1`.
const APPLICATION_ID: i64 = 0x6877_6d31;

/// SQLite before this can lose commits when a write-ahead log is reset with two connections open.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Opens a connection that may write, and brings the file to the newest schema. While the other file is open,
/// nobody else opens the store.
pub(crate) fn open_writer(path: &Path, key: &SealingKey) -> Result<(Connection, File), OpenError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(OpenError::OldSqlite {
            found: rusqlite::version(),
        });
    }
    let sqlite = |error| OpenError::from_sqlite(path, error);
    create_file(path).map_err(|source| OpenError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut db = connect(path).map_err(sqlite)?;
    // Before anything is written: is it ours, and do we know it?
    let version = recognise(&db, path)?;
    if db.is_readonly(rusqlite::MAIN_DB).map_err(sqlite)? {
        return Err(OpenError::ReadOnly {
            path: path.to_owned(),
        });
    }
    let lock = lock(path)?;
    if !configure_writer(&db).map_err(sqlite)? {
        return Err(OpenError::NoLog {
            path: path.to_owned(),
        });
    }
    migrate(&mut db, version, MIGRATIONS).map_err(sqlite)?;
    check_key(&mut db, path, key)?;
    Ok((db, lock))
}

/// Locks a file beside the store. The store's own file will not do: closing it would end SQLite's locks.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(name);
    let path = path.to_owned();
    let file = match file {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            return Err(OpenError::ReadOnly { path });
        }
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let sqlite = |error| OpenError::from_sqlite(path, error);
    let db = connect(path).map_err(sqlite)?;
    db.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -512;")
        .map_err(sqlite)?;
    Ok(db)
}

/// The file and its folder's entry, with no access for others; SQLite gives its log the same mode.
fn create_file(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => sync_folder_of(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let metadata = std::fs::metadata(path)?;
            if metadata.is_file() && metadata.mode() & 0o077 != 0 {
                let own = metadata.mode() & 0o700;
                return match std::fs::set_permissions(path, PermissionsExt::from_mode(own)) {
                    // Not our file, or nobody's to change: whether it may be written shows next.
                    Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
                    Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => Ok(()),
                    changed => changed,
                };
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.execute_batch(
        "PRAGMA busy_timeout = 10000;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA temp_store = MEMORY;",
    )?;
    db.set_prepared_statement_cache_capacity(256);
    Ok(db)
}

/// Answers false when the file system cannot hold a write-ahead log.
fn configure_writer(db: &Connection) -> rusqlite::Result<bool> {
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    db.execute_batch(
        "PRAGMA synchronous = FULL;
         PRAGMA secure_delete = FAST;
         PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864;
         PRAGMA cache_size = -16384;
         PRAGMA cache_spill = OFF;",
    )?;
    Ok(mode == "wal")
}

fn number(db: &Connection, pragma: &str) -> rusqlite::Result<i64> {
    db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
}

/// The file's schema number.
fn recognise(db: &Connection, path: &Path) -> Result<i64, OpenError> {
    let sqlite = |error| OpenError::from_sqlite(path, error);
    let foreign = |found| OpenError::NotAStore {
        path: path.to_owned(),
        found,
    };
    let version = number(db, "user_version").map_err(sqlite)?;
    let application = number(db, "application_id").map_err(sqlite)?;
    let count = "SELECT count(*) FROM sqlite_schema";
    let things: i64 = db.query_row(count, [], |row| row.get(0)).map_err(sqlite)?;
    let known = MIGRATIONS.len() as i64;
    match application {
        APPLICATION_ID if version > known => Err(OpenError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        }),
        APPLICATION_ID if version >= 0 => Ok(version),
        0 if version == 0 && things == 0 => Ok(0),
        _ => Err(foreign("it is a database of another program")),
    }
}

/// Takes the steps that are missing, each whole or not at all.
fn migrate(db: &mut Connection, version: i64, steps: &[&str]) -> rusqlite::Result<()> {
    for (step, number) in steps.iter().zip(1..).skip(usize::try_from(version).unwrap_or(0)) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if self::number(&transaction, "user_version")? >= number {
            // Somebody else took it meanwhile.
            continue;
        }
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Whether the key is the file's own. Writes even when it is, so that a file that cannot be written to is
/// refused now and not at the first request.
fn check_key(db: &mut Connection, path: &Path, key: &SealingKey) -> Result<(), OpenError> {
    let sqlite = |error| OpenError::from_sqlite(path, error);
    let transaction = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    let select = "SELECT value FROM meta WHERE name = 'key_check'";
    let check: Option<Vec<u8>> =
        rusqlite::OptionalExtension::optional(transaction.query_row(select, [], |row| row.get(0)))
            .map_err(sqlite)?;
    match check {
        Some(check) if !key.made(&check) => {
            return Err(OpenError::WrongKey {
                path: path.to_owned(),
            });
        }
        Some(_) => {}
        None => {
            let check = key.check_value().map_err(|e| {
                let source = rusqlite::Error::ToSqlConversionFailure(Box::new(e));
                OpenError::Sqlite {
                    path: path.to_owned(),
                    source,
                }
            })?;
            let insert = "INSERT INTO meta VALUES ('key_check', ?1)";
            transaction.execute(insert, [check]).map_err(sqlite)?;
        }
    }
    let opened = "INSERT INTO meta VALUES ('opened', 1) ON CONFLICT DO UPDATE SET value = value + 1";
    transaction.execute(opened, []).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(db: &Connection) -> i64 {
        number(db, "user_version").unwrap()
    }

    #[test]
    fn steps_are_taken_forward_and_once() {
        let mut db = Connection::open_in_memory().unwrap();
        let steps = [
            "CREATE TABLE a (x)",
            "INSERT INTO a VALUES (1)",
            "INSERT INTO a VALUES (2)",
        ];
        migrate(&mut db, 0, &steps[..1]).unwrap();
        assert_eq!(version(&db), 1);
        migrate(&mut db, 1, &steps).unwrap();
        migrate(&mut db, 3, &steps).unwrap();
        assert_eq!(version(&db), 3);
        let sum: i64 = db
            .query_row("SELECT sum(x) FROM a", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sum, 3);
    }

    #[test]
    fn a_step_that_fails_half_way_leaves_the_step_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let good = "CREATE TABLE a (x); INSERT INTO a VALUES (1);";
        let bad = "INSERT INTO a VALUES (2); CREATE TABLE b (y); INSERT INTO nowhere VALUES (1);";
        let mut db = Connection::open(&path).unwrap();
        migrate(&mut db, 0, &[good, bad]).unwrap_err();
        drop(db);
        let mut db = Connection::open(&path).unwrap();
        assert_eq!(version(&db), 1);
        let tables = "SELECT count(*) FROM sqlite_schema";
        assert_eq!(db.query_row(tables, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
        let mended = "INSERT INTO a VALUES (2); CREATE TABLE b (y);";
        migrate(&mut db, 1, &[good, mended]).unwrap();
        assert_eq!(version(&db), 2);
        let sum: i64 = db
            .query_row("SELECT sum(x) FROM a", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sum, 3);
    }

    #[test]
    fn the_bundled_sqlite_is_new_enough_and_has_what_is_needed() {
        assert!(rusqlite::version_number() >= OLDEST_SQLITE);
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, 0, MIGRATIONS).unwrap();
    }
}
