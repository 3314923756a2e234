! An ensemble on many ranks: each rank forecasts its own members, mean and spread are reduced, and a job that has to end
! early leaves a restart file, from which the same command goes on. The values do not depend on the number of ranks, and
! a continued run ends with the bytes of one that was not interrupted.
!
!     mpirun -np 4 ensemble CHECKPOINT FRAMES MEMBERS RESTART OUT [STEPS]
!
! FRAMES holds (channels, grid, 3) and OUT gets (channels, grid, members, frames), both real32 as they are in memory. With
! STEPS the run ends after so many frames. MEMBERS is a multiple of the number of ranks. On a line.
program ensemble
    use, intrinsic :: iso_fortran_env, only: int8, int64, real32, real64
    use mpi_f08
    use enma
    implicit none
    type(enma_model) :: model
    type(enma_session) :: session
    type(MPI_File) :: output
    real(real32), allocatable :: history(:, :, :), frame(:, :, :)
    integer(int64) :: members, own, done, total, steps
    integer :: rank, ranks
    logical :: continued

    call MPI_Init()
    call MPI_Comm_rank(MPI_COMM_WORLD, rank)
    call MPI_Comm_size(MPI_COMM_WORLD, ranks)
    ! Files end the program where they cannot be opened or written; MPI's default is to go on.
    call MPI_File_set_errhandler(MPI_FILE_NULL, MPI_ERRORS_ARE_FATAL)
    call enma_open(argument(1), model)
    members = number(argument(3))
    own = members / ranks
    if (own * ranks /= members .or. model%dims /= 1) error stop "MEMBERS is no multiple of the ranks, or the model on a plane"
    allocate (frame(model%channels, model%grid, own))
    call MPI_File_open(MPI_COMM_WORLD, argument(5), MPI_MODE_CREATE + MPI_MODE_WRONLY, MPI_INFO_NULL, output)

    ! One thread a rank, whatever OMP_NUM_THREADS says.
    call enma_new_session(model, session, own, first_member=rank * own, threads=1)
    inquire (file=argument(4), exist=continued)
    if (continued) then
        call read_restart()
    else
        call read_history()
        call enma_observe(session, history)
    end if
    call enma_progress(session, done, total)
    steps = total
    if (command_argument_count() > 5) steps = min(done + number(argument(6)), total)
    do while (done < steps)
        call enma_step(session, frame)
        call write_frame()
        call print_statistics()
        call enma_progress(session, done, total)
    end do
    if (done < total) call write_restart()
    call MPI_File_close(output)
    call enma_free(session)
    call enma_close(model)
    call MPI_Finalize()

contains

    subroutine read_history()
        integer :: file
        allocate (history(model%channels, model%grid, 3))
        open (newunit=file, file=argument(2), access="stream", form="unformatted", status="old", action="read")
        read (file) history
        close (file)
    end subroutine read_history

    ! The members of this rank to their place in the file.
    subroutine write_frame()
        integer(MPI_OFFSET_KIND) :: place
        place = 4_int64 * model%channels * model%grid * (done * members + rank * own)
        call MPI_File_write_at_all(output, place, frame, size(frame), MPI_REAL, MPI_STATUS_IGNORE)
    end subroutine write_frame

    ! Over the grid: the mean of all members, and the root mean square of their spread.
    subroutine print_statistics()
        real(real64), allocatable :: sums(:, :, :), total_sums(:, :, :)
        real(real64) :: variance
        allocate (sums(model%channels, model%grid, 2))
        allocate (total_sums, mold=sums)
        sums(:, :, 1) = sum(real(frame, real64), dim=3)
        sums(:, :, 2) = sum(real(frame, real64)**2, dim=3)
        call MPI_Reduce(sums, total_sums, size(sums), MPI_DOUBLE_PRECISION, MPI_SUM, 0, MPI_COMM_WORLD)
        if (rank /= 0) return
        variance = sum(total_sums(:, :, 2) - total_sums(:, :, 1)**2 / members)
        variance = max(0.0_real64, variance) / max(1_int64, members - 1) / (model%grid * model%channels)
        print "(a, i0, 2(a, f10.6))", "frame ", done, ": mean ", &
            sum(total_sums(:, :, 1)) / members / (model%grid * model%channels), ", spread ", sqrt(variance)
    end subroutine print_statistics

    ! The state of each rank, one after the other: they are equally long.
    subroutine write_restart()
        integer(int8), allocatable :: state(:)
        type(MPI_File) :: file
        call enma_save(session, state)
        call MPI_File_open(MPI_COMM_WORLD, argument(4), MPI_MODE_CREATE + MPI_MODE_WRONLY, MPI_INFO_NULL, file)
        call MPI_File_write_at_all(file, int(rank, MPI_OFFSET_KIND) * size(state), state, size(state), MPI_BYTE, &
                                   MPI_STATUS_IGNORE)
        call MPI_File_close(file)
    end subroutine write_restart

    ! A file of another run, or of another number of ranks, is refused by enma_restore.
    subroutine read_restart()
        integer(int8), allocatable :: state(:)
        integer(MPI_OFFSET_KIND) :: bytes
        type(MPI_File) :: file
        call MPI_File_open(MPI_COMM_WORLD, argument(4), MPI_MODE_RDONLY, MPI_INFO_NULL, file)
        call MPI_File_get_size(file, bytes)
        allocate (state(bytes / ranks))
        call MPI_File_read_at_all(file, int(rank, MPI_OFFSET_KIND) * size(state), state, size(state), MPI_BYTE, &
                                  MPI_STATUS_IGNORE)
        call MPI_File_close(file)
        call enma_restore(session, state)
    end subroutine read_restart

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

end program ensemble
