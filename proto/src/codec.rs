//! How messages become bytes and bytes messages: as `prost` does it, in buffers that fit.
//!
//! Laws: a call holds as much as its messages need and no more. A message is written into one buffer of its own size; the
//! 8 KiB that `tonic` sets aside for each direction of each call beforehand are what thousands of quiet streams would
//! cost. Sources: `tonic::codec::BufferSettings`, `tonic::codec::EncodeBody`, `tonic::codec::Streaming`.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// Bytes that each direction of a call has from its beginning: the prefix of a message, or a small one.
const FIRST_BYTES: usize = 64;
/// Messages that are ready at once are handed on together up to so many bytes: `tonic`'s own figure.
const TOGETHER_BYTES: usize = 32 * 1024;

/// The codec of every generated service: `Out` is sent, `In` received.
#[derive(Debug)]
pub struct Codec<Out, In>(PhantomData<(Out, In)>);

/// Writes messages.
#[derive(Debug)]
pub struct Exact<T>(PhantomData<T>);

impl<Out, In> Default for Codec<Out, In> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(FIRST_BYTES, TOGETHER_BYTES)
}

impl<Out, In> tonic::codec::Codec for Codec<Out, In>
where
    Out: Message + 'static,
    In: Message + Default + 'static,
{
    type Encode = Out;
    type Decode = In;
    type Encoder = Exact<Out>;
    type Decoder = ProstDecoder<In>;

    fn encoder(&mut self) -> Exact<Out> {
        Exact(PhantomData)
    }

    fn decoder(&mut self) -> ProstDecoder<In> {
        ProstDecoder::new(settings())
    }
}

impl<T: Message> Encoder for Exact<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message.encode(buffer).map_err(|cause| Status::internal(cause.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
