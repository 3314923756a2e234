! Forecasts on a plane from Fortran: arrays with one axis more, both kinds of real, and a member that is stopped.
!
!     plane CHECKPOINT FRAMES OUT
program plane
    use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
    use enma
    implicit none
    type(enma_model) :: model
    type(enma_session) :: session
    real(real32), allocatable :: history(:, :, :, :), frame(:, :, :, :)
    real(real64), allocatable :: wide(:, :, :, :), frames(:, :, :, :, :)
    integer(int32) :: status
    integer :: file
    character(len=1000) :: name

    call get_command_argument(1, name)
    call enma_open(name, model)
    if (model%dims /= 2 .or. product(model%shape) /= model%grid) error stop "the plane has no shape"
    allocate (history(model%channels, model%shape(2), model%shape(1), 3))
    call get_command_argument(2, name)
    open (newunit=file, file=name, access="stream", form="unformatted", status="old", action="read")
    read (file) history
    close (file)
    wide = history
    call enma_new_session(model, session, 2_int64)
    call enma_observe(session, wide)
    allocate (frame(model%channels, model%shape(2), model%shape(1), 2))
    call enma_step(session, frame(:, :, 1, :), status)
    if (status /= ENMA_INVALID_ARGUMENT .or. index(enma_message(), "frame has 3 axes") == 0) error stop enma_message()
    call enma_step(session, frame)
    call enma_stop(session, [.false., .true.])
    allocate (frames(model%channels, model%shape(2), model%shape(1), 4, 2))
    call enma_forecast(session, frames)
    call get_command_argument(3, name)
    open (newunit=file, file=name, access="stream", form="unformatted", status="replace", action="write")
    write (file) frame, real(frames, real32)
    close (file)
    call enma_free(session)
    call enma_close(model)
end program plane
