//! The module of a token: loaded once for the process, initialised again when a token went away.
//!
//! Laws: one process has each module once, however many rings use it, since initialisation is the process's; nobody is in
//! the module while it is finalised; a session belongs to the generation it was opened in and is worth nothing after,
//! not even to be closed. Not here: sessions and keys (`token`).
//! Sources: PKCS #11 v3.1 §5.4 (C_Initialize, C_Finalize: undefined while other calls run).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};

use super::token::Fault;

/// The modules of this process. They stay loaded: a module may hold what other rings will want.
static MODULES: LazyLock<Mutex<BTreeMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);

/// A module.
pub(super) struct Module {
    path: PathBuf,
    /// `None` until it could be initialised.
    state: RwLock<(u64, Option<Pkcs11>)>,
}

/// A module to work with, in one generation of it.
pub(super) struct Inside<'a> {
    pub(super) pkcs11: &'a Pkcs11,
    pub(super) generation: u64,
}

impl Module {
    /// The module at `path`, the same one for everybody; nothing is loaded yet.
    pub(super) fn at(path: &Path) -> Arc<Self> {
        // Poison safety here and below: what is held is replaced whole.
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        // One module by two names is one. A path that leads nowhere is named when it is loaded.
        let path = fs::canonicalize(path).unwrap_or_else(|_nowhere| path.to_owned());
        let new = || Arc::new(Self { path: path.clone(), state: RwLock::new((0, None)) });
        Arc::clone(modules.entry(path.clone()).or_insert_with(new))
    }

    /// Does `work` while nobody finalises the module.
    pub(super) fn enter<T>(&self, work: impl FnOnce(Inside<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            (generation, Some(pkcs11)) => work(Inside { pkcs11, generation: *generation }),
            (_, None) => Err(Fault::gone("it is not initialised")),
        }
    }

    /// The generation now: what [`Module::renew`] is to end.
    pub(super) fn generation(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Initialises the module anew, unless somebody did since `generation`. Only so do many modules notice a token that
    /// came back.
    pub(super) fn renew(&self, generation: u64) -> Result<(), Fault> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.0 != generation {
            return Ok(());
        }
        let loaded = match state.1.take() {
            Some(pkcs11) => {
                let again = pkcs11.clone();
                // Another part of the program may have done it; what matters is whether it initialises.
                let _finalised = pkcs11.finalize();
                again
            }
            None => Pkcs11::new(&self.path).map_err(|cause| Fault::gone(&cause))?,
        };
        state.0 = state.0.saturating_add(1);
        match loaded.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
                state.1 = Some(loaded);
                Ok(())
            }
            Err(cause) => Err(Fault::gone(&cause)),
        }
    }
}
