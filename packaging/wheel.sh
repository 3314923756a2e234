#!/bin/sh
# Wheels into dist/: the package, for one Python and every Torch, and the models that it does not hold.
#
#     wheel.sh FOLDER_OF_PROGRAMS
set -eu
bin=$1
out=out/wheel
models=$out/models/enma_fast_models
rm -rf $out dist && mkdir -p $models
"$bin/python" -m pip --quiet wheel --no-deps --wheel-dir $out .
# OpenMP's library is that of Torch, which has threads already.
PATH="$bin:$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir dist $out/*.whl

cp packaging/models/pyproject.toml $out/models
cp packaging/models/__init__.py $models
for name in $("$bin/python" -c 'from enma_fast.data.shipped import IN_MODELS; print(*IN_MODELS)'); do
    cp -r "enma_fast/pretrained/$name" $models
done
"$bin/python" -m pip --quiet wheel --no-deps --wheel-dir dist $out/models
ls -l dist
