#!/bin/sh
# Builds llama-bench and llama-batched-bench from the llama.cpp sources inside the PyPI source distribution of
# llama-cpp-python, for this machine's processor:
#
#     sh benchmarks/peers/build_llama.sh FOLDER [JOBS]
#
# Needs python with pip, cmake (3.14 or later), ninja and a C++17 compiler. The programs land in FOLDER/build/bin, and
# FOLDER/version says what they were built from. A second call goes on where the first one stopped.
set -eu
folder=${1:?give a folder to build in}
jobs=${2:-1}
release=0.3.36

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
sources=$folder/llama_cpp_python-$release/vendor/llama.cpp
if [ ! -f "$sources/CMakeLists.txt" ]; then
    python3 -m pip download --no-deps --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$release"
    tar -xf "$folder/llama_cpp_python-$release.tar.gz" -C "$folder"
fi

# GGML_NATIVE compiles for the processor at hand, which is the fastest that llama.cpp gets on it.
cmake -S "$sources" -B "$folder/build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
cmake --build "$folder/build" -j "$jobs" --target llama-bench llama-batched-bench

commit="of unknown commit"
if [ -e "$sources/.git" ]; then
    commit=$(git -C "$sources" rev-parse --short HEAD)
fi
echo "llama.cpp $commit of llama-cpp-python $release" >"$folder/version"
echo "$folder/build/bin: llama-bench and llama-batched-bench, $(cat "$folder/version")"
