#!/bin/sh
# Every test and example of libenma by each compiler that is there: gcc with gfortran and the slow tests (sanitizers,
# fuzzers, CMake), clang, and the tests once more over a library in which every access is watched.
#
#     embed.sh PYTHON [arguments of pytest]
set -eu
python=$1
shift
# Installed where that is possible; tests skip what is missing.
packages="cmake pkg-config gcc g++ gfortran clang libomp-dev libopenmpi-dev openmpi-bin"
flang=flang-22
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages > /dev/null \
        || echo "not all compilers could be installed: tests skip what is missing"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $flang > /dev/null || echo "no $flang"
fi

CC=gcc CXX=g++ FC=gfortran "$python" -m pytest tests/runtime "$@"

if command -v $flang > /dev/null; then
    FC=$flang "$python" -m pytest -m "not slow" -k fortran tests/runtime "$@"
fi

if command -v clang++ > /dev/null; then
    CC=clang CXX=clang++ "$python" -m pytest -m "not slow" tests/runtime "$@"
fi

watched="-fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O1 --param=asan-use-after-return=0"
CXXFLAGS=$watched ASAN_OPTIONS=detect_leaks=0 \
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    "$python" -m pytest -m "not slow" tests/runtime "$@"
