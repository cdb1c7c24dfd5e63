//! Why a request would be granted or denied.
