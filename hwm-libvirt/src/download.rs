//! Gets the bytes of an image onto this host: resumed where they were cut off, and hashed before anyone uses them.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::backend::{BackendError, BackendErrorKind};
use sha2::{Digest as _, Sha256, Sha512};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::catalog::Digest;
use crate::qcow2::HEADER_BYTES;

type Say<'a> = &'a (dyn Fn(String, Option<u8>) + Send + Sync);
type Result<T> = std::result::Result<T, BackendError>;

/// How often a transfer is taken up again after it was cut off.
const RESUMES: u32 = 8;
/// The longest list of checksums that is read.
const LIST_BYTES: usize = 4 << 20;

/// A file with known bytes.
#[derive(Debug)]
pub(crate) struct Downloaded {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
    pub(crate) head: Vec<u8>,
    temporary: bool,
}

impl Downloaded {
    /// Removes the file, if it is only a download.
    pub(crate) fn discard(&self) {
        if self.temporary {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(kind: BackendErrorKind, message: impl Into<String>) -> BackendError {
    BackendError::new(kind, "downloading", message)
}

fn io(path: &Path, error: &std::io::Error) -> BackendError {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => BackendErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied => BackendErrorKind::Denied,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => BackendErrorKind::NoSpace,
        _ => BackendErrorKind::Failed,
    };
    failed(kind, format!("{}: {error}", path.display()))
}

/// What downloads.
pub(crate) fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(Duration::from_secs(60))
        .user_agent(concat!("hwm/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::custom(follow))
        .build()
        .map_err(|e| {
            let help = "a host without certificates of public authorities needs Debian's ca-certificates, or the like";
            failed(BackendErrorKind::Failed, format!("{}: {help}", cause(&e)))
        })
}

/// Follows a redirect that does not leave TLS.
fn follow(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
    if attempt.previous().len() > 5 {
        attempt.error("too many redirects")
    } else if was_https && attempt.url().scheme() != "https" {
        attempt.error("a redirect away from https")
    } else {
        attempt.follow()
    }
}

/// The digest that a list of checksums has for the file behind `url`.
pub(crate) async fn listed(http: &reqwest::Client, list: &str, url: &str) -> Result<Digest> {
    let unavailable =
        |e: reqwest::Error| failed(BackendErrorKind::Unavailable, format!("{list}: {}", cause(&e)));
    let answer = http.get(list).send().await.map_err(unavailable)?;
    let answer = answer.error_for_status().map_err(unavailable)?;
    let mut body = answer.bytes_stream();
    let mut text = Vec::new();
    while let Some(chunk) = body.next().await {
        text.extend_from_slice(&chunk.map_err(unavailable)?);
        if text.len() > LIST_BYTES {
            return Err(failed(
                BackendErrorKind::Failed,
                format!("{list} is no list of checksums"),
            ));
        }
    }
    let file = url.rsplit('/').next().unwrap_or(url);
    Digest::find_in_list(&String::from_utf8_lossy(&text), file).ok_or_else(|| {
        failed(
            BackendErrorKind::Failed,
            format!("{list} has no checksum for {file}"),
        )
    })
}

/// The root of an error, without the URL's query.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Downloads `url` into `folder`, and takes up what an earlier try left there.
pub(crate) async fn fetch(
    http: &reqwest::Client,
    url: &str,
    expected: &Digest,
    folder: &Path,
    name: &str,
    say: Say<'_>,
) -> Result<Downloaded> {
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(|e| io(folder, &e))?;
    let path = folder.join(format!("{name}-{}.part", &expected.hex()[..16]));
    let resumed = tokio::fs::metadata(&path).await.map_or(0, |m| m.len());
    transfer(http, url, &path, name, say).await?;
    match hash(&path, Some(expected), say).await {
        Err(error) if error.kind == BackendErrorKind::Invalid => {
            let _ = tokio::fs::remove_file(&path).await;
            if resumed == 0 {
                return Err(error);
            }
            // What was there before may have been another version.
            transfer(http, url, &path, name, say).await?;
            let again = hash(&path, Some(expected), say).await;
            if again.is_err() {
                let _ = tokio::fs::remove_file(&path).await;
            }
            again
        }
        other => other,
    }
    .map(|file| Downloaded {
        temporary: true,
        ..file
    })
}

async fn transfer(http: &reqwest::Client, url: &str, path: &Path, name: &str, say: Say<'_>) -> Result<()> {
    let mut tries = 0;
    loop {
        match once(http, url, path, name, say).await {
            Ok(()) => return Ok(()),
            Err(Cut { error, progressed }) => {
                tries = if progressed { 1 } else { tries + 1 };
                if error.kind != BackendErrorKind::Unavailable || tries > RESUMES {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(200 << tries.min(6))).await;
            }
        }
    }
}

struct Cut {
    error: BackendError,
    progressed: bool,
}

async fn once(
    http: &reqwest::Client,
    url: &str,
    path: &Path,
    name: &str,
    say: Say<'_>,
) -> std::result::Result<(), Cut> {
    let stop = |error: BackendError| Cut {
        error,
        progressed: false,
    };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .await
        .map_err(|e| stop(io(path, &e)))?;
    let mut have = file.metadata().await.map_err(|e| stop(io(path, &e)))?.len();
    let mut request = http.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let away = |e: &reqwest::Error| failed(BackendErrorKind::Unavailable, format!("{url}: {}", cause(e)));
    let answer = request.send().await.map_err(|e| stop(away(&e)))?;
    let status = answer.status().as_u16();
    match status {
        206 => {}
        // All of it is there.
        416 if have > 0 => return Ok(()),
        200 => {
            file.set_len(0).await.map_err(|e| stop(io(path, &e)))?;
            have = 0;
        }
        400..500 => {
            return Err(stop(failed(
                BackendErrorKind::Failed,
                format!("{url} answers {status}"),
            )));
        }
        _ => {
            return Err(stop(failed(
                BackendErrorKind::Unavailable,
                format!("{url} answers {status}"),
            )));
        }
    }
    let total = answer.content_length().map(|rest| rest + have);
    let begun = have;
    let mut body = answer.bytes_stream();
    let mut shown = None;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| Cut {
            error: away(&e),
            progressed: have > begun,
        })?;
        file.write_all(&chunk).await.map_err(|e| stop(io(path, &e)))?;
        have += chunk.len() as u64;
        let percent = total.and_then(|t| u8::try_from((have * 100).checked_div(t)?).ok());
        if percent != shown {
            shown = percent;
            let of = total.map_or(String::new(), |t| format!(" of {}", t >> 20));
            say(
                format!("downloading image {name}: {}{of} MB", have >> 20),
                percent,
            );
        }
    }
    file.sync_all().await.map_err(|e| stop(io(path, &e)))?;
    match total {
        Some(total) if have < total => Err(Cut {
            error: failed(BackendErrorKind::Unavailable, format!("{url} ended early")),
            progressed: have > begun,
        }),
        _ => Ok(()),
    }
}

/// Hashes a file, and compares. A difference is [`BackendErrorKind::Invalid`].
pub(crate) async fn hash(path: &Path, expected: Option<&Digest>, say: Say<'_>) -> Result<Downloaded> {
    say(format!("checking {}", path.display()), None);
    let mut file = File::open(path).await.map_err(|e| io(path, &e))?;
    let size = file.seek(SeekFrom::End(0)).await.map_err(|e| io(path, &e))?;
    file.rewind().await.map_err(|e| io(path, &e))?;
    let mut head = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut short, mut long) = (Sha256::new(), Sha512::new());
    let wants_long = matches!(expected, Some(Digest::Sha512(_)));
    loop {
        let n = file.read(&mut buffer).await.map_err(|e| io(path, &e))?;
        if n == 0 {
            break;
        }
        let room = HEADER_BYTES.saturating_sub(head.len());
        head.extend_from_slice(&buffer[..n.min(room)]);
        if wants_long {
            long.update(&buffer[..n]);
        } else {
            short.update(&buffer[..n]);
        }
        tokio::task::yield_now().await;
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let digest = if wants_long {
        Digest::Sha512(hex(&long.finalize()))
    } else {
        Digest::Sha256(hex(&short.finalize()))
    };
    if let Some(expected) = expected
        && *expected != digest
    {
        return Err(failed(
            BackendErrorKind::Invalid,
            format!("its checksum is {digest} and should be {expected}"),
        ));
    }
    Ok(Downloaded {
        path: path.to_owned(),
        size,
        digest,
        head,
        temporary: false,
    })
}
