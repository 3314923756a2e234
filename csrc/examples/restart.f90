! Forecasts an ensemble from three observed frames, a frame at a time: half of it, then a restart file, then the other
! half in a new session that continues from that file.
!
!     restart CHECKPOINT FRAMES MEMBERS RESTART OUT
!
! FRAMES holds (channels, grid, 3) and OUT gets (channels, grid, members, frames), both real32 as they are in memory.
program restart
    use, intrinsic :: iso_fortran_env, only: int8, int64, real32
    use enma
    implicit none
    type(enma_model) :: model
    type(enma_session) :: session
    real(real32), allocatable :: history(:, :, :), frame(:, :, :)
    integer(int8), allocatable :: saved(:)
    integer(int64) :: members, done, total, bytes
    integer :: file, output

    call enma_open(argument(1), model)
    allocate (history(model%channels, model%grid, 3))
    open (newunit=file, file=argument(2), access="stream", form="unformatted", status="old", action="read")
    read (file) history
    close (file)
    members = number(argument(3))
    allocate (frame(model%channels, model%grid, members))
    open (newunit=output, file=argument(5), access="stream", form="unformatted", status="replace", action="write")

    call enma_new_session(model, session, members)
    call enma_observe(session, history)
    call enma_progress(session, done, total)
    do while (done < total / 2)
        call advance()
    end do
    call enma_save(session, saved)
    call enma_free(session)
    open (newunit=file, file=argument(4), access="stream", form="unformatted", status="replace", action="write")
    write (file) saved
    close (file)

    deallocate (saved)
    inquire (file=argument(4), size=bytes)
    allocate (saved(bytes))
    open (newunit=file, file=argument(4), access="stream", form="unformatted", status="old", action="read")
    read (file) saved
    close (file)
    call enma_new_session(model, session, members)
    call enma_restore(session, saved)
    call enma_progress(session, done, total)
    do while (done < total)
        call advance()
    end do
    close (output)
    call enma_free(session)
    call enma_close(model)

contains

    subroutine advance()
        call enma_step(session, frame)
        write (output) frame
        call enma_progress(session, done, total)
        print "(a, i0, a, f10.6)", "frame ", done, ": mean ", sum(frame) / size(frame)
    end subroutine advance

    function argument(place) result(text)
        integer, intent(in) :: place
        character(len=:), allocatable :: text
        integer :: length
        call get_command_argument(place, length=length)
        allocate (character(len=length) :: text)
        call get_command_argument(place, text)
    end function argument

    integer(int64) function number(text)
        character(len=*), intent(in) :: text
        read (text, *) number
    end function number

end program restart
