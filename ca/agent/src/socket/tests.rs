//! Tests of the socket's folder and stale leftovers. Those of its modes need an umask, hence a process, of their own:
//! `tests/sockets`.

use super::*;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

#[tokio::test]
async fn a_socket_that_nobody_answers_on_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(std::os::unix::net::UnixListener::bind(with_suffix(&path, UNFINISHED)).unwrap());
    assert!(path.exists(), "the standard library leaves it behind");
    let socket = Socket::bind(&path).unwrap();
    std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let first = Socket::bind(&path).unwrap();
    assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })), "by the lock");
    drop(first);
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })), "by asking");
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn what_is_no_socket_is_never_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Socket::bind(&path), Err(SocketError::InTheWay { what: "no socket", .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(matches!(Socket::bind(&path), Err(SocketError::InTheWay { .. })));
}

#[tokio::test]
async fn a_folder_that_others_can_write_to_is_refused_unless_sticky() {
    let outer = tempfile::tempdir().unwrap();
    for (bits, accepted) in [(0o777, false), (0o775, false), (0o1777, true), (0o755, true), (0o700, true)] {
        let folder = outer.path().join(format!("{bits:o}"));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(bits)).unwrap();
        let bound = Socket::bind(&folder.join("api.sock"));
        assert_eq!(bound.is_ok(), accepted, "{bits:o}: {bound:?}");
        assert_eq!(mode(&folder), bits, "a folder that was there keeps its mode");
    }
}

#[tokio::test]
async fn paths_that_cannot_be_sockets_are_refused_by_name() {
    let long = format!("/{}", "a".repeat(103));
    for bad in ["api.sock", "/", long.as_str()] {
        assert!(matches!(Socket::bind(Path::new(bad)), Err(SocketError::Path { .. })), "{bad}");
    }
}

#[tokio::test]
async fn the_socket_goes_with_its_owner_but_only_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(Socket::bind(&path).unwrap());
    assert!(!path.exists());
    let socket = Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another's").unwrap();
    drop(socket);
    assert!(path.exists());
}
